//! The SQL contract: what producers may rely on, tried on real files from connections other than
//! the daemon's, with the library of today and, where libraries differ, with SQLite 3.26. Knows
//! nothing of clouds.

mod ending;
mod inserting;
mod keys;
mod ledgers;
mod order;
mod orders;
mod people;
mod states;
mod times;
mod views;
mod walk;
