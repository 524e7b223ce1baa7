//! Where tasks go by their names: Celery's `task_routes`.

use celery_protocol::signature::Route;
use celery_protocol::{Glob, Signature};

/// Patterns of task names and where those tasks go; the first that matches wins.
#[derive(Clone, Debug, Default)]
pub(crate) struct Routes(Vec<(Glob, Route)>);

impl Routes {
    pub(crate) fn add(&mut self, pattern: &str, route: Route) {
        self.0.push((Glob::new(pattern), route));
    }

    /// Where a call goes by its name; none if it says so itself, or no pattern is for it.
    pub(crate) fn find(&self, call: &Signature) -> Option<&Route> {
        if self.0.is_empty() || call.route() != Route::default() {
            return None;
        }
        let task = call.routed_task();
        // A name beats a pattern wherever it stands, as in Celery.
        let by_name = self.0.iter().find(|(pattern, _)| pattern.pattern() == task);
        let found = by_name.or_else(|| self.0.iter().find(|(pattern, _)| pattern.is_match(task)));
        found.map(|(_, route)| route)
    }

    /// Writes where a call goes into the call.
    pub(crate) fn address(&self, call: &mut Signature) {
        let Some(route) = self.find(call) else { return };
        let Route { queue, exchange, routing_key } = route.clone();
        for (name, value) in [("queue", queue), ("exchange", exchange), ("routing_key", routing_key)] {
            if let Some(value) = value {
                call.options.insert(name.to_owned(), value.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use celery_protocol::canvas;

    fn queue(call: Signature) -> Option<String> {
        let mut routes = Routes::default();
        routes.add("reports.*", Route::to_queue("reports"));
        routes.add("reports.urgent", Route::to_queue("urgent"));
        let topic = Route { queue: None, exchange: Some("topic".into()), routing_key: Some("k".into()) };
        routes.add("media.*", topic);
        let mut call = call;
        routes.address(&mut call);
        let route = call.route();
        route.queue.or(route.exchange)
    }

    #[test]
    fn a_name_beats_patterns_and_the_call_beats_all() {
        assert_eq!(queue(Signature::new("reports.monthly")).as_deref(), Some("reports"));
        assert_eq!(queue(Signature::new("reports.urgent")).as_deref(), Some("urgent"));
        assert_eq!(queue(Signature::new("media.img")).as_deref(), Some("topic"));
        assert_eq!(queue(Signature::new("reports.monthly").queue("own")).as_deref(), Some("own"));
        assert_eq!(queue(Signature::new("other")), None);
    }

    #[test]
    fn a_map_goes_where_its_task_goes() {
        let map = canvas::map(&Signature::new("reports.monthly"), [1.into()]);
        assert_eq!(queue(map).as_deref(), Some("reports"));
    }
}
