use super::*;
use crate::collector::snapshot::{ClientRow, Counters, KeyRow, PairRow, ServerRow, Snapshot};
use crate::model::{Endpoint, Timestamp};
use crate::report::KeyGroup;
use crate::top::history::INTERVALS_MAX;

fn client(last: u8, port: u16) -> Endpoint {
    Endpoint::from_ipv4([10, 0, 0, last], port)
}

fn gets(gets: u64) -> Counters {
    Counters { gets, hits: gets / 2, misses: gets - gets / 2, bytes_out: gets * 100, ..Counters::default() }
}

/// One target in the interval that ends at `second`. Each key is asked for by clients 1 (three quarters) and 2.
fn snapshot(target: &str, second: u64, keys: &[(&str, u64)]) -> Snapshot {
    let total: u64 = keys.iter().map(|(_, requests)| requests).sum();
    let row = |&(key, requests): &(&str, u64)| KeyRow {
        key: key.as_bytes().into(),
        truncated: false,
        err: 0,
        counters: gets(requests),
        clients: vec![
            PairRow { client: client(1, 0), requests: requests - requests / 4, err: 0 },
            PairRow { client: client(2, 0), requests: requests / 4, err: 0 },
        ],
    };
    let clients = |port: u16| {
        vec![
            ClientRow { client: client(1, port), err: 0, counters: gets(total - total / 4), top_key: None },
            ClientRow { client: client(2, port), err: 0, counters: gets(total / 4), top_key: None },
        ]
    };
    let mut snapshot = Snapshot {
        target: target.to_string(),
        address: format!("{target}:11211"),
        start: Timestamp::from_parts(second - 1, 0),
        end: Timestamp::from_parts(second, 0),
        keys: keys.iter().map(row).collect(),
        clients: clients(0),
        sockets: clients(4000),
        ..Snapshot::default()
    };
    snapshot.totals.counters = gets(total);
    snapshot.loss.packets = total;
    snapshot
}

fn frame(second: u64, keys: &[(&str, u64)]) -> Frame {
    Frame { snapshots: vec![snapshot("one", second, keys)], ..Frame::default() }
}

fn state() -> State {
    let mut state = State::new(ReportOptions::default(), Over::Interval, Source::Capture);
    state.set_height(10);
    state
}

fn keys_shown(state: &State) -> Vec<String> {
    let Body::Rows(rows) = &state.page().body else { panic!("rows are shown") };
    let name = |id: &RowId| match id {
        RowId::Key(key) => String::from_utf8_lossy(key).into_owned(),
        RowId::Client(client) => client.to_string(),
        RowId::Shape(name) | RowId::Group(name) => String::from_utf8_lossy(name).into_owned(),
        RowId::Server(server) => server.to_string(),
        RowId::Target(target) => target.clone(),
    };
    rows.ids.iter().map(name).collect()
}

fn tab(view: &View) -> Input {
    Input::Show(View::TABS.iter().position(|(tab, _)| tab == view).expect("it has a tab"))
}

fn press(state: &mut State, inputs: &[Input]) {
    for input in inputs {
        assert_eq!(state.handle(*input), Effect::None, "{input:?}");
    }
}

fn type_line(state: &mut State, asks: Input, text: &str) -> Effect {
    press(state, &[asks, Input::EraseLine]);
    for character in text.chars() {
        press(state, &[Input::Type(character)]);
    }
    state.handle(Input::Enter)
}

const ABC: &[(&str, u64)] = &[("a", 300), ("b", 200), ("c", 100)];

#[test]
fn the_selection_stays_with_its_key_while_ranks_change() {
    let mut state = state();
    state.take(frame(1, ABC));
    press(&mut state, &[Input::Down]);
    assert_eq!(state.cursor().row, Some(RowId::Key((*b"b").into())));
    state.take(frame(2, &[("a", 300), ("b", 2), ("c", 100)]));
    assert_eq!(keys_shown(&state), ["a", "c", "b"]);
    assert_eq!((state.cursor().index, state.cursor().gone), (2, false));

    state.take(frame(3, &[("a", 300), ("c", 100)]));
    assert!(state.cursor().gone, "b is not in this interval, and nothing else is selected for it");
    press(&mut state, &[Input::Enter]);
    assert_eq!(*state.view(), View::Keys, "another row is not taken for the one that was meant");
    state.take(frame(4, ABC));
    assert_eq!((state.cursor().index, state.cursor().gone), (1, false));
}

#[test]
fn a_selection_that_moves_out_of_sight_takes_the_screen_along() {
    let mut state = state();
    state.set_height(2);
    state.take(frame(1, ABC));
    press(&mut state, &[Input::Down]);
    state.take(frame(2, &[("a", 300), ("b", 2), ("c", 100)]));
    assert_eq!((state.cursor().top, state.cursor().index), (1, 2));
    press(&mut state, &[Input::First]);
    assert_eq!(state.cursor().top, 0);
    press(&mut state, &[Input::Last]);
    assert_eq!((state.cursor().top, state.cursor().index), (1, 2));
}

#[test]
fn one_goes_deeper_from_a_key_to_its_clients_and_from_a_client_to_its_keys() {
    let mut state = state();
    state.take(frame(1, ABC));
    press(&mut state, &[Input::Enter]);
    assert_eq!(*state.view(), View::ClientsOfKey((*b"a").into()));
    assert_eq!(keys_shown(&state), ["10.0.0.1:0", "10.0.0.2:0"]);
    press(&mut state, &[Input::Down, Input::Enter]);
    assert_eq!(*state.view(), View::KeysOfClient(client(2, 0)));
    assert_eq!(keys_shown(&state), ["a", "b", "c"]);
    assert_eq!(state.tab(), Some(0), "the tab beneath is still that of the keys");
    press(&mut state, &[Input::Back]);
    assert_eq!(state.cursor().row, Some(RowId::Client(client(2, 0))), "the selection is where it was left");
    press(&mut state, &[Input::Back, Input::Back]);
    assert_eq!(*state.view(), View::Keys);

    // From connections, too.
    press(&mut state, &[Input::Show(1), Input::Enter]);
    assert_eq!(*state.view(), View::KeysOfClient(client(1, 0)));
}

/// The message of its end is gone with the next key press; old figures must not look like new ones then.
#[test]
fn a_screen_that_is_fed_no_longer_says_so_for_good() {
    let mut state = state();
    state.take(frame(1, &[("old", 1)]));
    assert!(state.end() && !state.end());
    press(&mut state, &[Input::Freeze, Input::Freeze, Input::Enter]);
    assert_eq!((state.message(), &state.standing()[0][..]), (None, "NO LONGER FED"));
}

#[test]
fn freezing_holds_the_interval_and_steps_lead_through_the_others() {
    let mut state = state();
    state.take(frame(1, &[("old", 1)]));
    state.take(frame(2, &[("mid", 1)]));
    press(&mut state, &[Input::Freeze]);
    state.take(frame(3, &[("new", 1)]));
    assert_eq!(keys_shown(&state), ["mid"]);
    press(&mut state, &[Input::Older]);
    assert_eq!(keys_shown(&state), ["old"]);
    assert!(state.standing()[0].contains("2 newer"), "{:?}", state.standing());
    press(&mut state, &[Input::Older]);
    assert_eq!(state.message(), Some("no older interval is kept"));
    press(&mut state, &[Input::Newer, Input::Newer]);
    assert_eq!(keys_shown(&state), ["new"]);
    assert_eq!(state.standing()[0], "FROZEN");
    press(&mut state, &[Input::Newer]);
    assert_eq!(state.standing()[0], "live");
    press(&mut state, &[Input::Older, Input::Freeze]);
    assert_eq!(keys_shown(&state), ["new"], "going on leads to the newest");
}

#[test]
fn the_past_is_bounded_and_what_is_forgotten_is_counted() {
    let mut state = state();
    for second in 1..=INTERVALS_MAX as u64 + 3 {
        state.take(frame(second, ABC));
    }
    assert!(state.standing().contains(&"3 older forgotten".to_string()), "{:?}", state.standing());
    for _ in 0..INTERVALS_MAX - 1 {
        press(&mut state, &[Input::Older]);
        assert_eq!(state.message(), None);
    }
    press(&mut state, &[Input::Older]);
    assert!(state.message().is_some());
}

#[test]
fn older_intervals_keep_their_heaviest_rows() {
    let keys: Vec<(String, u64)> = (0..5000).map(|number| (format!("k{number}"), 10_000 - number)).collect();
    let keys: Vec<(&str, u64)> = keys.iter().map(|(key, requests)| (key.as_str(), *requests)).collect();
    let mut state = state();
    state.take(frame(1, &keys));
    let held = |state: &State| match &state.page().body {
        Body::Rows(rows) => rows.held,
        Body::Lists(_) => 0,
    };
    assert_eq!(held(&state), 5000);
    state.take(frame(2, ABC));
    press(&mut state, &[Input::Older]);
    assert_eq!(held(&state), 131_072 / INTERVALS_MAX);
    assert_eq!(keys_shown(&state)[0], "k0");
}

#[test]
fn filters_are_regular_expressions_or_the_grammar() {
    let mut state = state();
    state.take(frame(1, &[("user:1", 3), ("item:1", 2)]));
    assert_eq!(type_line(&mut state, Input::AskFilter, "^item"), Effect::None);
    assert_eq!(keys_shown(&state), ["item:1"]);
    assert_eq!(state.filter().as_deref(), Some("key ~ ^item"));
    type_line(&mut state, Input::AskFilter, "key !~ ^item and client = 10.0.0.2");
    assert_eq!(keys_shown(&state), ["user:1"]);
    press(&mut state, &[Input::Enter]);
    assert_eq!(keys_shown(&state), ["10.0.0.2:0"]);

    type_line(&mut state, Input::AskFilter, "kye ~ x");
    assert!(state.message().is_some_and(|text| text.contains("unknown field")), "{:?}", state.message());
    assert_eq!(state.prompt().map(|prompt| prompt.text.as_str()), Some("kye ~ x"), "it can be mended");
    press(&mut state, &[Input::Back, Input::Back, Input::ClearFilter]);
    assert_eq!(keys_shown(&state), ["user:1", "item:1"]);
}

#[test]
fn rows_are_sorted_and_reversed() {
    let mut state = state();
    let mut frame = frame(1, ABC);
    frame.snapshots[0].keys[2].counters.misses = 1000;
    frame.snapshots[0].keys[1].counters.hits = 0;
    frame.snapshots[0].keys[0].counters = Counters { stores: 300, ..Counters::default() };
    state.take(frame);
    press(&mut state, &[Input::Reverse]);
    assert_eq!(keys_shown(&state), ["c", "b", "a"]);
    press(&mut state, &[Input::Reverse, Input::SortAfter, Input::SortAfter]);
    assert_eq!(state.order().sort, Sort::Misses);
    assert_eq!(keys_shown(&state), ["c", "b", "a"]);
    press(&mut state, &[Input::SortAfter]);
    assert_eq!(keys_shown(&state), ["c", "b", "a"], "a has no hit ratio");
    press(&mut state, &[Input::Reverse]);
    assert_eq!(keys_shown(&state), ["b", "c", "a"], "nor has it the worst");
    press(
        &mut state,
        &[Input::Reverse, Input::SortBefore, Input::SortBefore, Input::SortBefore, Input::SortBefore],
    );
    assert_eq!(state.order().sort, Sort::Name);
    assert_eq!(keys_shown(&state), ["a", "b", "c"]);
}

#[test]
fn windows_add_the_kept_intervals_up() {
    let mut state = state();
    state.take(frame(1, ABC));
    state.take(frame(2, ABC));
    let requests = |state: &State| state.page().heading[3].clone();
    assert_eq!(requests(&state), "600 requests");
    press(&mut state, &[Input::Window]);
    assert_eq!(requests(&state), "1,200 requests");
    state.take(frame(3, ABC));
    assert_eq!(requests(&state), "1,800 requests");
    press(&mut state, &[Input::Older]);
    assert_eq!(requests(&state), "1,200 requests", "as it was then");
    press(&mut state, &[Input::Freeze, Input::Window, Input::Window, Input::Window, Input::Window]);
    assert_eq!(requests(&state), "600 requests");
}

#[test]
fn targets_are_switched_by_name() {
    let mut state = state();
    let both = |second| {
        let one = snapshot("one", second, ABC);
        Frame { snapshots: vec![one, snapshot("two", second, &[("z", 5000)])], ..Frame::default() }
    };
    state.take(both(1));
    press(&mut state, &[Input::NextTarget]);
    assert_eq!(keys_shown(&state), ["z"]);
    press(&mut state, &[Input::PreviousTarget]);
    assert_eq!(keys_shown(&state), ["a", "b", "c"]);
    press(&mut state, &[tab(&View::Targets)]);
    assert_eq!(keys_shown(&state), ["two", "one"], "most requests first");
    press(&mut state, &[Input::Enter]);
    assert_eq!((state.view(), keys_shown(&state)), (&View::Keys, vec!["z".to_string()]));
    state.take(frame(2, ABC));
    assert_eq!(state.page().heading, ["two: nothing in this interval"]);
    state.take(both(3));
    assert_eq!(keys_shown(&state), ["z"]);
}

#[test]
fn the_operators_groups_are_added_up_sorted_and_filtered() {
    let group = |name: &str, pattern: &str| KeyGroup {
        name: name.to_string(),
        pattern: regex::bytes::Regex::new(pattern).unwrap(),
    };
    let options = ReportOptions {
        groups: vec![group("items", "^item:"), group("users", "^user:")],
        ..ReportOptions::default()
    };
    let mut state = State::new(options, Over::Interval, Source::Capture);
    state.set_height(10);
    state.take(frame(1, &[("user:1", 300), ("item:1", 200), ("item:2", 200), ("x", 1)]));
    press(&mut state, &[tab(&View::Groups)]);
    assert_eq!(keys_shown(&state), ["items", "users", "(none of the groups)"]);
    press(&mut state, &[Input::Reverse]);
    assert_eq!(keys_shown(&state), ["(none of the groups)", "users", "items"]);
    press(&mut state, &[Input::Last, Input::Enter]);
    assert_eq!(*state.view(), View::Groups);
    assert!(state.message().is_some_and(|text| text.contains("regular expression")));
    type_line(&mut state, Input::AskFilter, "^user");
    assert_eq!(keys_shown(&state), ["users"]);
    assert!(state.cursor().gone, "the selected group has no row any more");
}

#[test]
fn the_servers_of_a_network_are_told_apart() {
    let mut state = state();
    let mut wide = frame(1, ABC);
    let server = |last, requests| ServerRow {
        server: client(last, 11211),
        err: 0,
        counters: gets(requests),
        top_key: Some(((*b"a").into(), requests / 2)),
    };
    wide.snapshots[0].servers = vec![server(8, 100), server(7, 500)];
    state.take(wide);
    press(&mut state, &[tab(&View::Servers)]);
    assert_eq!(keys_shown(&state), ["10.0.0.7:11211", "10.0.0.8:11211"]);
    press(&mut state, &[Input::Enter]);
    assert_eq!(*state.view(), View::Servers);
    let Effect::Write { contents, .. } = type_line(&mut state, Input::AskExport, "x.md") else {
        panic!("{:?}", state.message())
    };
    assert!(String::from_utf8(contents).unwrap().contains("| 10.0.0.7:11211 | 500 |"));
}

#[test]
fn views_that_have_no_rows_say_what_would_give_them_some() {
    let mut state = state();
    state.take(frame(1, ABC));
    for (view, advice) in [(View::Groups, "[[keys.group]]"), (View::Servers, "a network or *")] {
        press(&mut state, &[tab(&view)]);
        assert_eq!(keys_shown(&state), [""; 0]);
        assert!(state.page().notes[0].contains(advice), "{:?}", state.page().notes);
    }
}

#[test]
fn exports_hold_what_is_shown() {
    let mut state = state();
    state.take(frame(1, &[("user:1", 300), ("item:1", 200)]));
    type_line(&mut state, Input::AskFilter, "^user");
    let Effect::Write { path, contents } = type_line(&mut state, Input::AskExport, "x.md") else {
        panic!("nothing to write: {:?}", state.message());
    };
    let text = String::from_utf8(contents).unwrap();
    assert_eq!(path, Path::new("x.md"));
    assert!(text.contains("| `user:1` | 300 |") && !text.contains("item:1"), "{text}");

    press(&mut state, &[Input::Enter]);
    let Effect::Write { contents, .. } = type_line(&mut state, Input::AskExport, "x.jsonl") else {
        panic!("nothing to write: {:?}", state.message());
    };
    let object: serde_json::Value = serde_json::from_slice(&contents).unwrap();
    assert_eq!(object["hot_keys"].as_array().unwrap().len(), 1);
    assert_eq!(object["hot_keys"][0]["clients"][0]["client"], "10.0.0.1");
    assert_eq!(object["hot_keys"][0]["clients"][0]["requests"], 225);

    assert_eq!(type_line(&mut state, Input::AskExport, "x.txt"), Effect::None);
    assert!(state.message().is_some_and(|text| text.contains(".jsonl")));
}

#[test]
fn private_keys_are_masked_on_every_page_and_in_exports() {
    let secret = "top-secret-person";
    let options = ReportOptions {
        privacy: Privacy::new(PrivacyMode::Hash, Some("a secret of sixteen")),
        ..ReportOptions::default()
    };
    let mut state = State::new(options, Over::Interval, Source::Capture);
    let mut frame = frame(1, &[(secret, 300)]);
    frame.snapshots[0].clients[0].top_key = Some((secret.as_bytes().into(), 300));
    state.take(frame);
    for tab in 0..View::TABS.len() {
        press(&mut state, &[Input::Show(tab), Input::Enter]);
        assert!(!format!("{:?}", state.page()).contains(secret), "tab {tab}");
        for name in ["x.md", "x.jsonl"] {
            let Effect::Write { contents, .. } = type_line(&mut state, Input::AskExport, name) else {
                panic!("{:?}", state.message())
            };
            assert!(!String::from_utf8(contents).unwrap().contains(secret), "tab {tab}, {name}");
        }
    }
    press(&mut state, &[Input::Show(0), Input::Enter]);
    assert_eq!(keys_shown(&state).len(), 2, "the clients of a masked key are found");
}

#[test]
fn before_the_first_interval_every_key_press_is_harmless() {
    let mut state = state();
    for input in [
        Input::Down,
        Input::Enter,
        Input::Freeze,
        Input::Older,
        Input::Newer,
        Input::NextTarget,
        Input::Window,
    ] {
        press(&mut state, &[input]);
    }
    press(&mut state, &[Input::Freeze]);
    assert_eq!(type_line(&mut state, Input::AskExport, "x.md"), Effect::None);
    state.take(frame(1, ABC));
    assert!(!state.page().heading.is_empty());
}

#[test]
fn targets_may_come_and_go() {
    for over in [Over::Interval, Over::Minute, Over::Start] {
        let mut state = State::new(ReportOptions::default(), over, Source::Attached);
        state.set_height(10);
        let of = |second, targets: &[&str]| Frame {
            snapshots: targets.iter().map(|target| snapshot(target, second, &[(target, 8)])).collect(),
            ..Frame::default()
        };
        state.take(of(1, &["one"]));
        state.take(of(2, &["one", "two"]));
        press(&mut state, &[Input::NextTarget]);
        assert_eq!(keys_shown(&state), ["two"]);
        // It went, and came anew in the same interval.
        state.take(of(3, &["one", "two", "two"]));
        press(&mut state, &[tab(&View::Targets), Input::Last, Input::Enter]);
        assert_eq!(keys_shown(&state), ["two"]);
        state.take(of(4, &["one"]));
        assert_eq!(state.page().heading, ["two: nothing in this interval"]);
        press(&mut state, &[Input::NextTarget]);
        assert_eq!(keys_shown(&state), ["one"]);
        press(&mut state, &[Input::PreviousTarget, Input::Older, Input::Older, Input::Newer]);
        state.take(of(5, &[]));
        press(&mut state, &[Input::Freeze, Input::NextTarget, tab(&View::Targets), Input::Enter]);
        state.take(of(6, &["three"]));
        press(&mut state, &[Input::Show(0), Input::NextTarget]);
        assert_eq!(keys_shown(&state), ["three"]);
    }
}
