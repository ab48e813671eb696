//! The workers that the options name.

use super::options::Options;

/// A worker that the options name, or several by one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConfiguredWorker<'a> {
    /// Its URL or name, as it is written there.
    pub(crate) text: &'a str,
    pub(crate) list: WorkerList,
    /// Where decode workers find it.
    pub(crate) bootstrap_port: Option<u16>,
}

/// Which option names a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerList {
    /// `worker_urls`.
    Regular,
    /// `prefill_urls`.
    Prefill,
    /// `decode_urls`.
    Decode,
}

/// The workers of all lists, in their order.
pub(crate) fn configured_workers(options: &Options) -> impl Iterator<Item = ConfiguredWorker<'_>> {
    let worker = |list, text, bootstrap_port| ConfiguredWorker {
        text,
        list,
        bootstrap_port,
    };
    let regular = options.worker_urls.iter();
    let regular = regular.map(move |url| worker(WorkerList::Regular, url, None));
    let prefill = options.prefill_urls.iter().flatten();
    let prefill = prefill.map(move |(url, port)| worker(WorkerList::Prefill, url, *port));
    let decode = options.decode_urls.iter().flatten();
    let decode = decode.map(move |url| worker(WorkerList::Decode, url, None));
    regular.chain(prefill).chain(decode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_of_all_lists_come_in_order_with_their_ports() {
        let options = Options {
            worker_urls: vec!["http://a".into()],
            prefill_urls: Some(vec![
                ("http://b".into(), Some(8998)),
                ("http://c".into(), None),
            ]),
            decode_urls: Some(vec!["http://d".into()]),
            ..Options::default()
        };
        let found = configured_workers(&options);
        let found: Vec<_> = found
            .map(|it| (it.text, it.list, it.bootstrap_port))
            .collect();
        let expected = [
            ("http://a", WorkerList::Regular, None),
            ("http://b", WorkerList::Prefill, Some(8998)),
            ("http://c", WorkerList::Prefill, None),
            ("http://d", WorkerList::Decode, None),
        ];
        assert_eq!(found, expected);
        assert_eq!(configured_workers(&Options::default()).count(), 0);
    }
}
