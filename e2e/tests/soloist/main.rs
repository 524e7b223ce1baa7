//! Soloist on a real cluster: what a user and the people on call would see.

mod backlog;
mod broker_outage;
mod burst;
mod deletion;
mod faults;
mod kubectl;
mod operator;
mod other_type;
mod plugin;
mod refusals;
mod scale_in;
mod scaling;
mod secrets;
