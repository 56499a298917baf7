//! Conversations in meta commands.

use super::conversation::{c, check, check_with, s};

#[test]
fn every_command_and_code() {
    check(
        &[
            c("mg a v\nmg a\nmg a\n"),
            s("VA 2\nhi\nHD\nEN\n"),
            c(
                "ms a 2\nhi\nms a 2 MA\nhi\nms a 2 ME\nhi\nms a 2 C9\nhi\nms a 2 C9 MR\nhi\nms a 2 C9 MA\nhi\n",
            ),
            s("HD\nNS\nNS\nEX\nNF\nHD\n"),
            c("md a\nmd a\nmd a C1\n"),
            s("HD\nNF\nEX\n"),
            c("ma n\nma n v\nma n MD\nma n M-\nma n\nma n\n"),
            s("HD\nVA 2\n10\nHD\nHD\nNF\nNS\n"),
            c("me a\nme b\nmn\nmg a t v T30\nmg b T30\n"),
            s("ME a exp=-1 la=0\nEN\nMN\nVA 2 t30\nhi\nEN\n"),
        ],
        "mg a hit 8/10
         mg a hit 6/4
         mg a miss 6/4
         ms a stored 12/4
         ms a not_stored 15/4
         ms a not_stored 15/4
         cas a exists 15/4
         cas a not_found 18/4
         ms a stored 18/4
         md a hit 6/4
         md a miss 6/4
         md a exists 9/4
         ma n hit 6/4
         ma n hit 8/10
         ma_decr n hit 9/4
         ma_decr n hit 9/4
         ma n miss 6/4
         ma n not_stored 6/4
         me a hit 6/18
         me b miss 6/4
         mn - ok 4/4
         mg_touch a hit 14/14
         mg_touch b miss 10/4",
    );
}

#[test]
fn quiet_is_resolved_only_by_a_later_answer() {
    check(
        &[
            c("mg a q k v\nmg b q k v\nmg c q k v\nms d 1 q\nx\nmd e q\nma f q\nmn\n"),
            s("VA 1 kb\nx\nMN\n"),
            c("mg z q k v\nms z 1 q\nx\n"),
        ],
        "mg a miss 12/0 quiet
         mg b hit 12/12 quiet
         mg c miss 12/0 quiet
         ms d stored 13/0 quiet
         md e hit 8/0 quiet
         ma f hit 8/0 quiet
         mn - ok 4/4
         mg z unseen 12/0 quiet
         ms z unseen 13/0 quiet",
    );
}

#[test]
fn opaque_tells_equal_requests_apart() {
    check(
        &[c("mg a q O1 v\nmg a q O2 v\nmn\n"), s("VA 1 O2\nx\nMN\n")],
        "mg a miss 13/0 quiet
         mg a hit 13/12 quiet
         mn - ok 4/4",
    );
}

#[test]
fn errors_go_to_those_that_can_cause_them() {
    check(
        &[
            c("mg a q\nms b 1 q\nx\nma c q\nmg d\n"),
            s("CLIENT_ERROR cannot increment or decrement non-numeric value\nHD\n"),
            c("ms b 2000000 q\n"),
            s("SERVER_ERROR object too large for cache\n"),
        ],
        "mg a miss 8/0 quiet
         ms b stored 13/0 quiet
         ma c error 8/62 quiet
         mg d hit 6/4
         ms b too_large 2000018/41 quiet",
    );
    check(
        &[c("mg a q\nms b x\nmn\n"), s("CLIENT_ERROR bad command line format\nMN\n")],
        "mg a miss 8/0 quiet
         ms b error 8/38
         mn - ok 4/4",
    );
}

#[test]
fn base64_keys_are_decoded() {
    check(
        &[
            c("mg Zm9v b v\nmg Zm9v b k v\nms AAEC b 1\nmg YmluaQ== b k v\n"),
            s("EN\nVA 1 kfoo\nx\nCLIENT_ERROR bad data chunk\nVA 1 kYmluaQ== b\nx\n"),
            c("ms AAEC 1 b\nx\n"),
            s("HD\n"),
            c("mg !!! b\n"),
            s("CLIENT_ERROR error decoding key\n"),
        ],
        r"mg foo miss 13/4
         mg foo hit 15/14
         ms AAEC error 13/29
         mg bini hit 19/21
         ms \x00\x01\x02 stored 16/4
         unknown - error 10/33",
    );
}

#[test]
fn leases() {
    check(
        &[
            c("mg a N30 v\nmg a N30 v\nmg a v\nmg a N30\nmg a R30 v\nmg a N30 R30 v\n"),
            s("VA 0 W\n\nVA 0 Z\n\nVA 1 X W\nx\nHD W\nVA 1 W\nx\nVA 1 W\nx\n"),
        ],
        "mg a hit 12/10 won
         mg a hit 12/10 lost
         mg a hit 8/13 stale
         mg a hit 10/6 won
         mg a hit 12/11
         mg a hit 16/11",
    );
}

#[test]
fn codes_are_whole_tokens() {
    check(
        &[
            c("mg a\nget b\ncas c 0 0 1 1\nx\nms d 1 C1\nx\ndelete e\nmd f\n"),
            s("EN\nEND\nEXISTS\nEX\nNOT_FOUND\nNF\n"),
        ],
        "mg a miss 6/4
         get b miss 7/5
         cas c exists 18/8
         cas d exists 14/4
         delete e miss 10/11
         md f miss 6/4",
    );
}

#[test]
fn old_servers() {
    check(
        &[c("ms a S1\nx\nmg b k O1 v\nma n N0 q\nmn\n"), s("OK\nEN\nHD\nMN\n")],
        "ms a stored 12/4
         mg b miss 13/4
         ma n stored 11/4 quiet
         mn - ok 4/4",
    );
}

#[test]
fn a_lost_answer_between_identified_ones() {
    check_with(
        &[c("mg a k v\nmg b k v\n"), s("VA 1 kb\nx\n")],
        "mg a unseen 10/0
         mg b hit 10/12",
        "unmatched_requests=1",
    );
}
