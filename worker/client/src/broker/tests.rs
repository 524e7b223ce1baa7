use super::*;

fn fields(pairs: &[(&str, &str)]) -> Result<BrokerAddress, AddressError> {
    BrokerAddress::from_fields(pairs.iter().copied())
}

fn uri(text: &str) -> BrokerAddress {
    text.parse().unwrap()
}

#[test]
fn the_cluster_operators_fields_make_an_address() {
    let address = fields(&[
        ("username", "default_user_x"),
        ("password", "p@ss/word"),
        ("host", "rabbitmq.default.svc"),
        ("port", "5672\n"),
        ("provider", "rabbitmq"),
        ("connection_string", "amqp://other:other@elsewhere:1/"),
    ])
    .unwrap();
    assert_eq!(address.to_string(), "amqp://default_user_x@rabbitmq.default.svc:5672/");
    assert_eq!((address.password.as_str(), address.vhost.as_str(), address.tls), ("p@ss/word", "/", false));
}

#[test]
fn each_uri_key_is_read() {
    for key in URI_KEYS {
        assert_eq!(fields(&[(key, "amqp://u:p@h:1234/v")]).unwrap(), uri("amqp://u:p@h:1234/v"), "{key}");
    }
}

#[test]
fn a_uri_without_a_user_takes_the_fields() {
    let address = fields(&[("uri", "amqp://h"), ("username", "u"), ("password", "p")]).unwrap();
    assert_eq!((address.username.as_str(), address.password.as_str()), ("u", "p"));
    let address = fields(&[("uri", "amqp://own:secret@h"), ("username", "u"), ("password", "p")]).unwrap();
    assert_eq!((address.username.as_str(), address.password.as_str()), ("own", "secret"));
}

#[test]
fn the_vhost_of_an_empty_path_is_the_default_one() {
    for (text, vhost) in [
        ("amqp://h", "/"),
        ("amqp://h/", "/"),
        ("amqp://h//", "/"),
        ("amqp://h/%2F", "/"),
        ("amqp://h/prod", "prod"),
        ("amqp://h/a%2Fb", "a/b"),
    ] {
        assert_eq!(uri(text).vhost, vhost, "{text}");
    }
    assert_eq!(fields(&[("host", "h"), ("vhost", "prod")]).unwrap().vhost, "prod");
}

#[test]
fn tls_is_spoken_with_amqps_or_on_its_port() {
    assert!(uri("amqps://h").tls);
    assert_eq!(uri("amqps://h").port, 5671);
    assert!(uri("amqp://h:5671").tls);
    assert!(fields(&[("host", "h"), ("port", "5671")]).unwrap().tls);
    assert!(!uri("amqp://h").tls);
    let address =
        fields(&[("uri", "amqps://h"), ("ca.crt", "CA"), ("tls.crt", "C"), ("tls.key", "K")]).unwrap();
    let config = address.tls_config();
    assert_eq!(config.cert_chain.as_deref(), Some("CA"));
    assert!(config.identity.is_some());
}

#[test]
fn the_password_is_never_shown() {
    let address = uri("amqp://user:hunter2@h/v");
    assert_eq!(address.to_string(), "amqp://user@h:5672/v");
    assert!(!format!("{address:?} {address:#?}").contains("hunter2"));
    assert_eq!(address.to_uri(), "amqp://user:hunter2@h:5672/v");
}

#[test]
fn a_uri_survives_being_written_and_read() {
    let address = uri("amqp://us%40er:p@:s/%23@[::1]:5673/a%2Fb");
    assert_eq!(uri(&address.to_uri()), address);
}

#[test]
fn lapins_address_has_heartbeat_and_timeout() {
    let lapin = uri("amqp://u:p%40@h/v").amqp_uri();
    assert_eq!(lapin.authority.userinfo.password, "p@");
    assert_eq!(lapin.vhost, "v");
    assert_eq!(lapin.query.heartbeat, Some(30));
    assert_eq!(lapin.query.connection_timeout, Some(10_000));
    let lapin = uri("amqp://h?heartbeat=7&connection_timeout=500").amqp_uri();
    assert_eq!((lapin.query.heartbeat, lapin.query.connection_timeout), (Some(7), Some(500)));
    assert_eq!(uri("amqp://h?heartbeat=0").amqp_uri().query.heartbeat, Some(30));
}

#[test]
fn the_management_api_is_beside_the_broker_unless_told() {
    assert_eq!(uri("amqp://h:5000").management_url(), "http://h:15672");
    assert_eq!(uri("amqps://[::1]").management_url(), "https://[::1]:15671");
    let address = fields(&[("uri", "amqp://u:p@h"), ("managementUri", "https://m:9/rabbit/api/")]).unwrap();
    assert_eq!(address.management_url(), "https://m:9/rabbit");
    assert_eq!(address.management_credentials(), ("u", "p"));
    let address = fields(&[("uri", "amqp://u:p@h"), ("managementUri", "http://a:b@m")]).unwrap();
    assert_eq!(address.management_url(), "http://m");
    assert_eq!(address.management_credentials(), ("a", "b"));
}

#[test]
fn a_secret_without_an_address_says_which_keys_it_has() {
    let message = fields(&[("user", "u"), ("pass", "hunter2")]).unwrap_err().to_string();
    assert!(message.contains("`uri`") && message.ends_with("found pass, user"), "{message}");
    assert!(!message.contains("hunter2"));
    assert!(fields(&[("uri", "")]).unwrap_err().to_string().contains("`host`"));
}

#[test]
fn other_schemes_are_named() {
    let error = "redis://h".parse::<BrokerAddress>().unwrap_err();
    assert_eq!(error.to_string(), "`redis` is not supported as broker (amqp or amqps)");
    assert_eq!("amqp://:5672".parse::<BrokerAddress>(), Err(AddressError::NoHost));
    assert_eq!(fields(&[("host", "h"), ("port", "x")]), Err(AddressError::Port));
}

#[test]
fn values_that_are_not_text_matter_only_where_they_are_used() {
    let pairs = [("uri", b"amqp://h".as_slice()), ("keystore.p12", b"\xff\x00")];
    assert!(BrokerAddress::from_fields(pairs).is_ok());
    let pairs = [("uri", b"\xff".as_slice())];
    assert_eq!(BrokerAddress::from_fields(pairs), Err(AddressError::NotText("uri".into())));
}

#[test]
fn a_mounted_secret_is_read_as_kubernetes_lays_it_out() {
    let directory = std::env::temp_dir().join(format!("soloist-broker-{}", uuid::Uuid::new_v4()));
    let data = directory.join("..data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("uri"), "amqp://u:p@h/v\n").unwrap();
    std::os::unix::fs::symlink("..data/uri", directory.join("uri")).unwrap();
    let address = BrokerAddress::from_directory(&directory);
    std::fs::remove_dir_all(&directory).unwrap();
    assert_eq!(address.unwrap(), uri("amqp://u:p@h/v"));
    let error = BrokerAddress::from_directory(&directory).unwrap_err();
    assert!(matches!(error, AddressError::Directory { .. }));
}
