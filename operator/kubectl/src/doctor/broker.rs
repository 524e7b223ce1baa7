//! What is wrong between the operator and the broker, by what the operator says of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use soloist_operator::plan::reason::Reason;

use super::task_queue::{Patient, stated};
use super::{Cause, Finding, Level, Report};
use crate::snapshot::{Address, Form, service_of};

/// Where no address is known.
const SOMEWHERE: &str = "the broker";

/// Finds the cause of a broker that can't be used. `address` is where it is, as far as that is known.
pub(super) fn unreachable(
    patient: &Patient<'_>,
    condition: &Condition,
    reason: Reason,
    address: Option<&Address>,
    report: &mut Report,
) {
    let Patient { namespace, secret, .. } = patient;
    let host = address.map_or(SOMEWHERE, |address| address.host.as_str());
    let user = address.map_or("USER", |address| address.user.as_str());
    let vhost = address.map_or("VHOST", |address| address.vhost.as_str());
    let said = condition.message.to_lowercase();
    let cause = match reason {
        Reason::BrokerUnreachable => match network_cause(&said) {
            // What a Service does with a port that it doesn't have is the network's own affair.
            Cause::BrokerSilent if lacks_port(patient, address) => Cause::BrokerRefused,
            cause => cause,
        },
        reason => Cause::Condition(reason),
    };
    let what = match cause {
        Cause::BrokerNameUnknown => format!("the operator can't resolve the broker's name `{host}`"),
        Cause::BrokerRefused => match address {
            Some(address) => format!("nothing listens on port {} of `{host}`", address.port),
            None => "nothing listens where the broker should be".to_owned(),
        },
        Cause::BrokerSilent => format!("`{host}` doesn't answer the operator"),
        Cause::BrokerTls => format!("the TLS connection to `{host}` fails"),
        _ => condition.message.clone(),
    };
    let seen = stated(condition, patient.now, what == condition.message);
    let mut finding = Finding::new(Level::Error, cause, &patient.object, what).seen(seen);
    finding = match cause {
        Cause::BrokerNameUnknown | Cause::BrokerRefused | Cause::BrokerSilent => {
            service(patient, address, finding)
        }
        _ => finding,
    };
    finding = match cause {
        Cause::BrokerNameUnknown | Cause::BrokerRefused => finding.remedy(change_address(patient, address)),
        Cause::BrokerSilent => finding
            .remedy(format!("is RabbitMQ up, and does a firewall let the operator's pods to `{host}`?"))
            .remedy(format!("kubectl get networkpolicies -n {namespace}; kubectl get networkpolicies -n {}", patient.operator_namespace())),
        // It answers, and not in TLS.
        Cause::BrokerTls if said.contains("corrupt message") => finding
            .remedy("5671 is the usual port with TLS (amqps://), 5672 the one without (amqp://)")
            .remedy(change_address(patient, address)),
        Cause::BrokerTls => finding
            .remedy(format!("put the authority that signed the broker's certificate, as the file ca.crt, into the Secret: kubectl patch secret {secret} -n {namespace} --type=merge -p \"{{\\\"data\\\":{{\\\"ca.crt\\\":\\\"$(base64 -w0 ca.crt)\\\"}}}}\""))
            .remedy("the certificate must have the name that the Secret gives the broker"),
        Cause::Condition(Reason::AuthFailed) => finding
            .remedy(change_password(patient, address))
            .remedy(format!("which password is right says, on the broker: rabbitmqctl authenticate_user {user} PASSWORD")),
        Cause::Condition(Reason::VhostRefused) => finding
            .remedy(format!("on the broker, if `rabbitmqctl list_vhosts` doesn't have it: rabbitmqctl add_vhost '{vhost}'"))
            .remedy(format!("on the broker: rabbitmqctl set_permissions -p '{vhost}' '{user}' '.*' '.*' '.*'")),
        _ => finding.remedy(reason.remedy()),
    };
    report.add(finding);
}

/// The command that corrects where the broker is, in the way that its Secret has it.
fn change_address(patient: &Patient<'_>, address: Option<&Address>) -> String {
    match address {
        Some(address @ Address { form: Form::Uri(key), .. }) => {
            patient.change_secret(key, &address.uri("HOST:PORT"))
        }
        _ => format!("kubectl edit secret {} -n {}", patient.secret, patient.namespace),
    }
}

/// The command that corrects the password, in the way that the broker's Secret has it.
fn change_password(patient: &Patient<'_>, address: Option<&Address>) -> String {
    match address {
        Some(address @ Address { form: Form::Uri(key), host, port, .. }) => {
            patient.change_secret(key, &address.uri(&format!("{host}:{port}")))
        }
        Some(Address { form: Form::Parts, .. }) => patient.change_secret("password", "PASSWORD"),
        _ => format!(
            "correct the password, in the URI or in a key of its own: kubectl edit secret {} -n {}",
            patient.secret, patient.namespace
        ),
    }
}

/// Whether the broker's name is of a Service that doesn't have its port.
fn lacks_port(patient: &Patient<'_>, address: Option<&Address>) -> bool {
    let service = |address: &Address| {
        Some((patient.around.services.get(&address.host)?.as_ref().ok()?.as_ref()?, address.port))
    };
    address.and_then(service).is_some_and(|(service, port)| !service.ports.contains(&port))
}

/// What keeps a connection from being made, by the words of the operating system and of the TLS library.
fn network_cause(said: &str) -> Cause {
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if has(&["failed to lookup", "name or service not known", "name does not resolve", "no such host"]) {
        Cause::BrokerNameUnknown
    } else if has(&["connection refused"]) {
        Cause::BrokerRefused
    } else if has(&["certificate", "tls", "handshake", "unknownissuer", "corrupt message"]) {
        Cause::BrokerTls
    } else if has(&["no answer", "timed out", "timeout", "unreachable", "no route"]) {
        Cause::BrokerSilent
    } else {
        Cause::Condition(Reason::BrokerUnreachable)
    }
}

/// What a Service of the broker's name says about it.
fn service(patient: &Patient<'_>, address: Option<&Address>, finding: Finding) -> Finding {
    let Some(address) = address else { return finding };
    let (host, namespace) = (&address.host, patient.namespace);
    let Some((name, of)) = service_of(host, namespace) else { return finding };
    let service = match patient.around.services.get(host) {
        Some(Ok(service)) => service,
        Some(Err(_)) | None => return finding,
    };
    let Some(service) = service else {
        return finding.seen(format!("there is no Service {name} in namespace {of}"));
    };
    let finding = match service.ready {
        Some(0) => finding.seen(format!("the Service `{host}` has no pod that is ready")).remedy(format!(
            "why it has none say the pods that it selects: kubectl describe service {name} -n {of}"
        )),
        _ => finding,
    };
    let finding = if service.ports.contains(&address.port) {
        finding
    } else {
        let ports: Vec<String> = service.ports.iter().map(ToString::to_string).collect();
        finding.seen(format!("the Service `{host}` has no port {}, but {}", address.port, ports.join(", ")))
    };
    if host.contains('.') || patient.operator_namespace() == namespace {
        return finding;
    }
    finding
        .seen(format!("`{host}` is a Service of namespace {namespace}; in the operator's namespace the name means something else"))
        .remedy(format!("use the full name {host}.{namespace}.svc"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_apart_by_what_the_system_says() {
        for (said, cause) in [
            ("failed to lookup address information: name does not resolve", Cause::BrokerNameUnknown),
            ("failed to lookup address information: name or service not known", Cause::BrokerNameUnknown),
            ("connection refused (os error 111)", Cause::BrokerRefused),
            ("connect to amqp://a@b:5672/: no answer in 10s", Cause::BrokerSilent),
            ("no route to host (os error 113)", Cause::BrokerSilent),
            ("invalid peer certificate: unknownissuer", Cause::BrokerTls),
            ("something else", Cause::Condition(Reason::BrokerUnreachable)),
        ] {
            assert_eq!(network_cause(said), cause, "{said}");
        }
    }
}
