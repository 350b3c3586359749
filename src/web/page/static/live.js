// Keeps a page up to date: when the server says that something has changed, the page is fetched again
// and the sections that differ are replaced. Without this script the page is as it was read.
"use strict";

(() => {
  const EVENTS = "/api/v1/events";
  // Pages are fetched at most so often, and at least so often, in milliseconds.
  const SOONEST = 1500;
  const LATEST = 15000;
  // And no sooner than after so many times as long as it took: a page that is hard to make is made less often.
  const REST = 10;
  // While the server does not answer.
  const AGAIN = 3000;
  // An answer that takes longer than this is none.
  const PATIENCE = 30000;

  const line = document.getElementById("live");
  if (!line || !document.querySelector("[data-live]")) {
    return;
  }

  // What each section was when it was read, before anybody opened or closed parts of it.
  const was = new WeakMap();
  let source = null;
  let timer = null;
  let timerAt = Infinity;
  let fetchedAt = Date.now();
  let soonest = SOONEST;
  let isFetching = false;
  let isStale = false;
  let said = "";

  function say(text, stale) {
    if (text === said) {
      return;
    }
    said = text;
    line.textContent = text;
    line.className = stale ? "stale" : "";
  }

  // A section in which somebody has marked text stays as it is.
  function isMarked(section) {
    const selection = document.getSelection();
    return Boolean(selection) && !selection.isCollapsed && section.contains(selection.anchorNode);
  }

  function replace(section, next) {
    const open = [...section.querySelectorAll("details")].map((details) => details.open);
    const focused = section.contains(document.activeElement) ? document.activeElement : null;
    const address = focused && focused.getAttribute("href");
    section.replaceChildren(...next.childNodes);
    [...section.querySelectorAll("details")].forEach((details, number) => {
      details.open = Boolean(open[number]);
    });
    if (focused) {
      // Who goes through the page by keyboard stays where they are.
      const links = [...section.querySelectorAll("a, summary")];
      const same = links.find((link) => address && link.getAttribute("href") === address);
      (same || links[0] || line).focus({ preventScroll: true });
    }
  }

  function takeUp(fresh) {
    document.title = fresh.title;
    for (const section of document.querySelectorAll("[data-live]")) {
      const next = fresh.getElementById(section.id);
      if (!next || next.innerHTML === was.get(section) || isMarked(section)) {
        continue;
      }
      was.set(section, next.innerHTML);
      replace(section, next);
    }
  }

  async function fetchAgain() {
    timer = null;
    timerAt = Infinity;
    if (isFetching || document.hidden) {
      return;
    }
    isFetching = true;
    const began = Date.now();
    try {
      const answer = await fetch(location.href, {
        cache: "no-store",
        headers: { accept: "text/html" },
        signal: AbortSignal.timeout(PATIENCE),
      });
      if (answer.redirected && new URL(answer.url).pathname === "/login") {
        say("You are signed out; load the page again.", true);
        stop();
        return;
      }
      if (answer.status >= 400 && answer.status < 500) {
        say(`This page can no longer be read (${answer.status}).`, true);
        stop();
        return;
      }
      if (!answer.ok) {
        throw new Error(String(answer.status));
      }
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      takeUp(fresh);
      isStale = false;
      fetchedAt = Date.now();
      soonest = Math.min(LATEST, Math.max(SOONEST, REST * (fetchedAt - began)));
      say("Live.", false);
      listen();
      fetchIn(LATEST);
    } catch {
      isStale = true;
      const clock = new Date(fetchedAt).toISOString().slice(11, 19);
      say(`The daemon does not answer since ${clock} UTC; what is shown is older.`, true);
      fetchIn(AGAIN);
    } finally {
      isFetching = false;
    }
  }

  function fetchIn(delay) {
    const at = Date.now() + delay;
    if (timer !== null && timerAt <= at) {
      return;
    }
    clearTimeout(timer);
    timerAt = at;
    timer = setTimeout(fetchAgain, delay);
  }

  function onChange() {
    fetchIn(Math.max(0, fetchedAt + soonest - Date.now()));
  }

  function listen() {
    if (source || document.hidden) {
      return;
    }
    source = new EventSource(EVENTS);
    source.addEventListener("snapshot", onChange);
    source.addEventListener("change", onChange);
    source.onerror = () => {
      // The browser tries again by itself unless the server has no events at all.
      if (source && source.readyState === EventSource.CLOSED) {
        source = null;
      }
      fetchIn(isStale ? AGAIN : SOONEST);
    };
  }

  function stop() {
    clearTimeout(timer);
    timer = null;
    timerAt = Infinity;
    if (source) {
      source.close();
      source = null;
    }
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      stop();
    } else {
      fetchIn(0);
    }
  });
  addEventListener("pagehide", stop);
  addEventListener("pageshow", () => fetchIn(SOONEST));

  for (const section of document.querySelectorAll("[data-live]")) {
    was.set(section, section.innerHTML);
  }
  fetchIn(SOONEST);
})();
