//! The servers beside the cluster can be taken away and given back. A test program of its own: cargo runs one after the
//! other, and while this one runs no other test must need a server.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::cluster::Cluster;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};

const QUEUE: &str = "e2e-servers";

async fn declare(url: &str) -> Result<(Connection, u32)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    let queue = channel.queue_declare(QUEUE.into(), options, FieldTable::default()).await?;
    Ok((connection, queue.message_count()))
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn rabbitmq_keeps_what_is_durable_when_it_is_stopped_or_killed() -> Result<()> {
    let cluster = Cluster::attach()?;
    let rabbitmq = &cluster.rabbitmq;
    let url = rabbitmq.create_vhost(QUEUE).await?;
    let body = async {
        let (connection, _) = declare(&url).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let persistent = BasicProperties::default().with_delivery_mode(2);
        let confirmed = channel
            .basic_publish("".into(), QUEUE.into(), BasicPublishOptions::default(), b"kept", persistent)
            .await?;
        confirmed.await?;

        rabbitmq.stop().await?;
        ensure!(declare(&url).await.is_err(), "it is stopped and answers");
        rabbitmq.stop().await?;
        rabbitmq.start().await?;
        ensure!(declare(&url).await?.1 == 1, "the message is lost");

        rabbitmq.kill().await?;
        ensure!(declare(&url).await.is_err(), "it was killed and answers");
        rabbitmq.start().await?;
        rabbitmq.start().await?;
        let (connection, messages) = declare(&url).await?;
        ensure!(messages == 1, "the message is lost");
        let channel = connection.create_channel().await?;
        channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await?;
        Ok(())
    };
    let outcome = tokio::time::timeout(Duration::from_secs(240), body).await;
    rabbitmq.start().await?;
    rabbitmq.delete_vhost(QUEUE).await?;
    outcome?
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn redis_keeps_what_it_has_when_it_is_stopped() -> Result<()> {
    let cluster = Cluster::attach()?;
    let client = redis::Client::open(cluster.redis.url())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    redis::cmd("SET").arg(QUEUE).arg("kept").query_async::<()>(&mut connection).await?;

    cluster.redis.stop().await?;
    ensure!(client.get_multiplexed_async_connection().await.is_err(), "it is stopped and answers");
    cluster.redis.start().await?;

    let mut connection = client.get_multiplexed_async_connection().await?;
    let kept: Option<String> = redis::cmd("GETDEL").arg(QUEUE).query_async(&mut connection).await?;
    ensure!(kept.as_deref() == Some("kept"), "it has {kept:?}");
    Ok(())
}
