//! The bare loop.

use celery_client::{BrokerAddress, amqp::short, connect};
use clap::Args;
use futures_util::StreamExt;
use lapin::{
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};

use crate::{Outcome, on_this_thread};

/// Runs until it is killed.
#[derive(Args)]
pub(crate) struct Drain {
    #[arg(long)]
    broker: BrokerAddress,
    #[arg(long)]
    queue: String,
    /// Messages held unacknowledged
    #[arg(long, default_value_t = 1)]
    in_hand: u16,
    /// Messages acknowledged at once
    #[arg(long, default_value_t = 1)]
    ack_every: u64,
}

impl Drain {
    pub(crate) fn run(self) -> Outcome {
        on_this_thread(async {
            let connection = connect(&self.broker, "load").await?;
            let channel = connection.create_channel().await?;
            channel.basic_qos(self.in_hand, BasicQosOptions { global: false }).await?;
            let options = BasicConsumeOptions::default();
            let tag = short("load");
            let mut consumer =
                channel.basic_consume(short(&self.queue), tag, options, FieldTable::default()).await?;
            let ack = BasicAckOptions { multiple: self.ack_every > 1 };
            let mut taken = 0;
            while let Some(delivery) = consumer.next().await {
                taken += 1;
                if taken % self.ack_every == 0 {
                    delivery?.acker.ack(ack).await?;
                }
            }
            Err("the broker has stopped the consumer".into())
        })
    }
}
