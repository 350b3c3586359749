//! The first page of help: the commands by what somebody wants to do. What each does is in its own
//! file.

use clap::{Command, CommandFactory, FromArgMatches};

use super::{COMMON_OPTIONS, Cli};

/// The commands in the order in which people meet them.
const GROUPS: [(&str, &[&str]); 4] = [
    (
        "Ask for something",
        &[
            "enqueue", "cancel", "retry", "undo", "approve", "override", "pause", "resume",
        ],
    ),
    (
        "Look",
        &[
            "status",
            "top",
            "wait",
            "list",
            "show",
            "explain",
            "plan",
            "report",
            "inventory",
        ],
    ),
    ("Run the daemon", &["serve", "check", "db"]),
    ("Try it out", &["demo", "simulate"]),
];

/// The command line of this process; ends the process if it asks for help or is wrong.
pub fn parse() -> Cli {
    let matches = grouped(Cli::command()).get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// The command with its subcommands in groups.
fn grouped(command: Command) -> Command {
    let heading = *command.get_styles().get_header();
    let literal = *command.get_styles().get_literal();
    let mut template = "{about-with-newline}\n{usage-heading} {usage}\n".to_owned();
    for (group, names) in GROUPS {
        template.push_str(&format!("\n{heading}{group}:{heading:#}\n"));
        for name in names {
            let Some(sub) = command.find_subcommand(name) else {
                continue;
            };
            let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
            template.push_str(&format!("  {literal}{name:<10}{literal:#} {about}\n"));
        }
    }
    template.push_str(&format!(
        "\n{heading}{COMMON_OPTIONS}:{heading:#}\n{{options}}{{after-help}}"
    ));
    command.help_template(template)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_one_group_of_the_first_page() {
        let command = Cli::command();
        let grouped: Vec<&str> = GROUPS
            .iter()
            .flat_map(|(_, names)| *names)
            .copied()
            .collect();
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let times = grouped
                .iter()
                .filter(|name| **name == sub.get_name())
                .count();
            assert_eq!(times, 1, "{}", sub.get_name());
        }
    }

    #[test]
    fn the_first_page_shows_commands_and_common_options() {
        let page = grouped(Cli::command()).render_help().to_string();
        for part in [
            "Look:",
            "  status ",
            "Common options:",
            "--config",
            "Example: ",
        ] {
            assert!(page.contains(part), "{part} in\n{page}");
        }
    }

    #[test]
    fn a_commands_own_options_stand_apart_from_the_common_ones() {
        let mut command = Cli::command();
        command.build();
        let list = command.find_subcommand_mut("list").expect("a command");
        let page = list.render_help().to_string();
        let common = page.find("Common options:").expect("a heading");
        let at = |option: &str| page.find(option).expect("an option");
        assert!(at("--label") < common && common < at("--config"), "{page}");
    }
}
