//! The operator's program.

use std::process::ExitCode;

fn main() -> ExitCode {
    print!("{}", soloist_operator::api::custom_resource_definitions_yaml().expect("the types serialize"));
    ExitCode::SUCCESS
}
