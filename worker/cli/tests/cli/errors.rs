//! What is said when something is wrong, and the exit code.

use crate::support::{bare, run, setting, soloist, unique, with_results};

#[test]
fn the_help_tells_the_exit_codes() {
    let mut help = bare();
    help.arg("--help");
    let said = run(help);
    assert!(
        said.code == 0 && said.out.contains("  3  the broker or the result store can't be reached"),
        "{said:?}"
    );
}

#[test]
fn shells_complete_it() {
    for shell in ["bash", "zsh", "fish"] {
        let mut completion = bare();
        completion.args(["completion", shell]);
        let said = run(completion);
        assert!(said.code == 0 && said.out.contains("cancel_consumer"), "{shell}");
    }
}

#[test]
fn a_broker_that_is_away_is_told_with_the_flag_to_set() {
    let mut ping = bare();
    ping.args(["inspect", "ping", "--broker", "amqp://guest:hunter2@127.0.0.1:1"]);
    let said = run(ping);
    assert_eq!(said.code, 3, "{said:?}");
    assert!(
        said.err.contains("connect to amqp://guest@127.0.0.1:1/") && said.err.contains("--broker URL"),
        "{said:?}"
    );
    assert!(!said.err.contains("hunter2"), "{said:?}");
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for args in [
        &["call"][..],
        &["chain", "tasks.add(1"],
        &["chord", "tasks.add(1)"],
        &["call", "t", "--kwargs", "[1]"],
        &["call", "t", "--broker", "http://x"],
        &["inspect", "query_task"],
        &["inspect", "everything"],
        &["result", "x"],
        &["result", "x", "--results", "rpc://"],
        &["call", "t", "--wait"],
        &["control", "shutdown"],
    ] {
        let mut command = bare();
        command.args(args);
        let said = run(command);
        assert_eq!(said.code, 2, "{args:?}: {said:?}");
    }
}

#[test]
#[ignore = "needs RabbitMQ and Redis: AMQP_URL, REDIS_URL"]
fn each_kind_of_refusal_names_its_remedy() {
    let broker: celery_client::BrokerAddress = setting("AMQP_URL").parse().unwrap();
    let wrong = |change: fn(&mut celery_client::BrokerAddress)| {
        let mut address = broker.clone();
        change(&mut address);
        let mut ping = bare();
        ping.args(["inspect", "ping", "--broker", &address.to_uri()]);
        run(ping)
    };
    let said = wrong(|address| address.password = "wrong".into());
    assert!(said.code == 3 && said.err.contains("check user and password in --broker"), "{said:?}");
    let said = wrong(|address| address.vhost = "no-such-vhost".into());
    assert!(said.code == 3 && said.err.contains("does the virtual host"), "{said:?}");
    let said = run(soloist(&["call", "t", "--results", "redis://127.0.0.1:1"]));
    assert!(said.code == 3 && said.err.contains("at redis://127.0.0.1:1/0"), "{said:?}");
    assert!(said.err.contains("--results URL"), "{said:?}");
    let name = unique();
    let said = run(soloist(&["purge", &name, "--yes"]));
    assert!(said.code == 1 && said.err.contains(&format!("queue `{name}` does not exist")), "{said:?}");
    let said = run(soloist(&["call", "t", "-Q", &name, "--create-missing-queues", "false"]));
    assert!(said.code == 1 && said.err.contains("--create-missing-queues true"), "{said:?}");
    let said = run(soloist(&["inspect", "ping", "-d", "nobody@here", "-t", "0.2"]));
    assert!(said.code == 4 && said.err.contains("nobody@here"), "{said:?}");
    let said = run(with_results(&["result", &name]));
    assert!(said.code == 4 && said.err.contains("PENDING"), "{said:?}");
}
