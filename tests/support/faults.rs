//! Every fault that hearth must survive, written once. `docs/faults.md` shows it; `tests/api_docs.rs` writes it there
//! (`UPDATE=1`), and refuses a test that does not exist and a reason that no such test looks for.

use std::fmt::Write;

/// One fault. What a caller is told stands in backticks where it is a reason of `docs/statuses.md` or a claim's
/// `status_reason`.
pub struct Fault {
    pub what: &'static str,
    /// What the caller who is concerned is told.
    pub told: &'static str,
    /// What others notice.
    pub others: &'static str,
    /// How all is well again.
    pub after: &'static str,
    pub tests: &'static [&'static str],
}

const NOTHING: &str = "nothing";

/// By what fails.
pub const FAULTS: &[(&str, &[Fault])] = &[
    (
        "hearthd",
        &[
            Fault {
                what: "killed with -9, anywhere",
                told: "the connection ends; the same call again gives the same answer",
                others: "sandboxes go on",
                after: "it is started again, adopts what lives, and destroys what nobody was told of",
                tests: &[
                    "kill_9_of_hearthd_under_load_loses_nothing",
                    "hearthd_may_die_at_every_fail_point",
                    "no_sandbox_restarts_when_hearthd_dies",
                ],
            },
            Fault {
                what: "no file descriptor left",
                told: "calls on held connections are answered; a new connection waits to be taken",
                others: "sandboxes go on; destructions wait",
                after: "once there are descriptors: new connections are taken, what failed is tried again",
                tests: &["without_descriptors_held_connections_go_on_and_new_ones_wait"],
            },
            Fault {
                what: "short of memory while guests flood it",
                told: "a stream that nobody reads stops its sender",
                others: NOTHING,
                after: "nothing has to be mended: what it holds is bounded",
                tests: &[
                    "short_of_memory_hearthd_outlives_a_flood",
                    "a_hostile_hearth_init_harms_its_own_sandbox_only",
                ],
            },
            Fault {
                what: "the wall clock is stepped by a day, forward or back",
                told: "no expiry moves; `expires_at` is told by the wall clock as it stands",
                others: NOTHING,
                after: "nothing has to be mended: hearth time follows the boot clock",
                tests: &[
                    "a_step_of_the_wall_clock_moves_no_expiry",
                    "rules",
                    "never_falls",
                    "a_start_is_kept_by_the_journal",
                ],
            },
        ],
    ),
    (
        "containerd",
        &[
            Fault {
                what: "killed",
                told: "warm claims are granted; what needs containerd is `RUNTIME_UNAVAILABLE`",
                others: "sandboxes go on, and their ends are noticed",
                after: "the managed one is started again; frozen sandboxes do not hold it up",
                tests: &[
                    "containerd_killed_under_load_comes_back_and_nothing_is_lost",
                    "a_killed_containerd_comes_back_and_costs_no_sandbox",
                    "it_is_started_again_as_often_as_it_dies",
                    "a_restart_of_containerd_does_not_wait_for_frozen_sandboxes",
                    "while_containerd_hangs_claims_are_served_from_what_is_warm",
                ],
            },
            Fault {
                what: "hung",
                told: "warm claims and releases are answered; a claim that needs a new sandbox is `RUNTIME_UNAVAILABLE`",
                others: "sandboxes go on",
                after: "once it answers, or when the managed one was killed and started again",
                tests: &[
                    "while_containerd_hangs_claims_are_served_from_what_is_warm",
                    "a_hung_one_is_killed_and_started_again",
                ],
            },
            Fault {
                what: "its socket is gone",
                told: "nothing at first, for the connection is held; then as if it was killed",
                others: "sandboxes go on",
                after: "the managed one, which nobody can ask, is killed and started again",
                tests: &["one_whose_socket_is_gone_is_replaced"],
            },
        ],
    ),
    (
        "A sandbox's shim",
        &[
            Fault {
                what: "killed",
                told: "its claim is FAILED with `SANDBOX_EXITED`, calls are `SANDBOX_ENDED`",
                others: NOTHING,
                after: "what is left is destroyed; the pool makes another member",
                tests: &[
                    "a_killed_shim_costs_its_own_sandbox_only",
                    "frozen_and_wedged_sandboxes_are_destroyed",
                ],
            },
            Fault {
                what: "hung",
                told: "calls into the sandbox are `GUEST_UNAVAILABLE`, the claim stays; a release is answered",
                others: NOTHING,
                after: "the sandbox goes on when its shim does; when it was released the shim is killed",
                tests: &[
                    "a_hung_shim_holds_up_its_own_sandbox_only",
                    "frozen_and_wedged_sandboxes_are_destroyed",
                ],
            },
        ],
    ),
    (
        "runsc",
        &[
            Fault {
                what: "hung in create or start",
                told: "a claim that waits for it is `CREATE_FAILED`, with the words of hearth-runsc's deadline",
                others: "sandboxes that are there go on",
                after: "what was half made is destroyed, and it is tried again",
                tests: &[
                    "a_hung_runsc_costs_the_call_that_needed_it",
                    "a_hung_runsc_never_hangs_the_shim",
                ],
            },
            Fault {
                what: "hung in checkpoint, or asked for its version for it",
                told: "`HIBERNATE_FAILED`; the sandbox runs on",
                others: NOTHING,
                after: "the same call again",
                tests: &[
                    "a_hung_runsc_costs_the_call_that_needed_it",
                    "a_hung_runsc_never_hangs_the_shim",
                ],
            },
            Fault {
                what: "hung in restore, or asked for its version for it",
                told: "`RESUME_FAILED`; the claim stays HIBERNATED, its image is kept",
                others: NOTHING,
                after: "the same call again",
                tests: &["a_hung_runsc_costs_the_call_that_needed_it"],
            },
            Fault {
                what: "hung in delete or kill",
                told: "a release is answered",
                others: NOTHING,
                after: "the cgroup is killed, the record of runsc removed: gone although runsc hangs",
                tests: &[
                    "a_hung_runsc_costs_the_call_that_needed_it",
                    "a_hung_runsc_never_hangs_the_shim",
                ],
            },
            Fault {
                what: "hung in exec, ps, state, events, pause, resume, update, list, features",
                told: "hearth does not use them; the shim and containerd get an answer or an error within hearth-runsc's deadline",
                others: NOTHING,
                after: "the sandbox was never touched",
                tests: &[
                    "a_runsc_that_hangs_where_hearth_does_not_ask_it_costs_nothing",
                    "a_hung_runsc_never_hangs_the_shim",
                ],
            },
        ],
    ),
    (
        "A guest",
        &[
            Fault {
                what: "dead",
                told: "the claim is FAILED, with `OOM` where the kernel killed it for its memory, else `SANDBOX_EXITED`",
                others: NOTHING,
                after: "what is left is destroyed; the pool makes another member",
                tests: &[
                    "a_sandbox_that_ends_by_itself_is_told_to_its_claim",
                    "ends_are_told_with_their_cause",
                    "a_killed_shim_costs_its_own_sandbox_only",
                ],
            },
            Fault {
                what: "silent",
                told: "`GUEST_UNAVAILABLE`, the claim stays; while it is claimed the next member serves, at last `GUEST_FAILED`",
                others: NOTHING,
                after: "the claim's holder releases it, or the guest answers again",
                tests: &[
                    "a_hostile_hearth_init_harms_its_own_sandbox_only",
                    "a_silent_guest_keeps_its_claim_and_callers_are_told_to_come_again",
                ],
            },
            Fault {
                what: "babbling",
                told: "the claim is FAILED with `GUEST_LOST`, calls are `SANDBOX_ENDED`",
                others: NOTHING,
                after: "the sandbox is destroyed",
                tests: &["a_hostile_hearth_init_harms_its_own_sandbox_only"],
            },
        ],
    ),
    (
        "The record's disk",
        &[
            Fault {
                what: "full",
                told: "claims are `DISK_RESERVE`; releases go through",
                others: "sandboxes go on",
                after: "once there is room",
                tests: &[
                    "a_disk_that_is_full_slow_or_fails_loses_nothing_that_was_told",
                    "a_full_tmpfs",
                    "a_full_ext4",
                ],
            },
            Fault {
                what: "fuller than the reserve can help",
                told: "hearthd ends before it answers what is not durable",
                others: "sandboxes go on",
                after: "a start that finds room; all that was durable is there",
                tests: &["a_disk_fuller_than_the_reserve"],
            },
            Fault {
                what: "slow: seconds for each commit",
                told: "claims and releases take that long, or as long as their caller waits; what needs no commit does not wait",
                others: NOTHING,
                after: "the same claim again goes on where it was",
                tests: &["a_disk_that_is_full_slow_or_fails_loses_nothing_that_was_told"],
            },
            Fault {
                what: "read-only, or no fsync succeeds",
                told: "hearthd ends before it answers what is not durable, and says at its start what is wrong",
                others: "sandboxes go on",
                after: "a start on the mended disk: all that was told stands",
                tests: &[
                    "a_disk_that_is_full_slow_or_fails_loses_nothing_that_was_told",
                    "a_failed_fsync_on_a_real_disk",
                    "a_failed_fsync_is_the_end",
                ],
            },
            Fault {
                what: "the record is truncated, or a bit of it flipped",
                told: "hearthd does not start (exit 1), and names the file and the damage",
                others: "sandboxes go on; nothing is touched",
                after: "the file is put back, or moved away: sandboxes are orphans then",
                tests: &[
                    "a_disk_that_is_full_slow_or_fails_loses_nothing_that_was_told",
                    "a_record_that_can_not_be_read_is_told_and_nothing_is_touched",
                    "truncated_anywhere",
                    "one_bit_flipped_anywhere",
                    "a_page_of_garbage_anywhere",
                    "foreign_files",
                ],
            },
            Fault {
                what: "the record is a newer hearth's",
                told: "hearthd does not start (exit 1), and names both versions",
                others: "sandboxes go on; nothing is touched",
                after: "the newer hearthd",
                tests: &[
                    "a_record_that_can_not_be_read_is_told_and_nothing_is_touched",
                    "steps_run_in_order_and_once",
                ],
            },
            Fault {
                what: "a sleeping sandbox's image is damaged",
                told: "its claim is FAILED with `DATA_LOSS`",
                others: NOTHING,
                after: "the claim is released like any other",
                tests: &[
                    "a_damaged_image_is_data_loss_and_one_that_does_not_fit_is_kept",
                    "a_changed_bit_anywhere_is_damage",
                ],
            },
        ],
    ),
    (
        "The network",
        &[
            Fault {
                what: "nft fails",
                told: "a claim whose policy can't be put in force gets the next member",
                others: "where the rules are gone nothing is reached; where they are there they hold",
                after: "rules are made anew at the next look, with the policies as they were",
                tests: &[
                    "while_nft_fails_nothing_is_open_and_nothing_is_said_to_be_in_force",
                    "a_policy_that_can_not_be_put_in_force_costs_its_member_and_the_next_serves",
                ],
            },
            Fault {
                what: "somebody flushes the rules",
                told: "nothing is reached; flows that were open go on afterwards",
                others: "the same",
                after: "rules are made anew at the next look",
                tests: &[
                    "without_hearths_rules_nothing_is_reached_and_they_come_back_with_the_flows",
                    "flushing_the_nodes_rules_opens_nothing",
                    "a_policy_can_be_applied_where_somebody_has_flushed_the_rules",
                ],
            },
            Fault {
                what: "a sandbox's interface can't be made",
                told: "a claim that waits for it is `CREATE_FAILED`, with the kernel's words, which count against its template",
                others: "what has an interface keeps it; templates without a network are served",
                after: "the pool's breaker tries again; what was half made is removed at the next look",
                tests: &[
                    "while_the_kernel_makes_no_links_what_is_there_goes_on_and_others_are_served",
                    "only_a_policy_that_needs_an_interface_gets_one",
                    "without_a_network_everything_that_needs_one_is_refused",
                    "failure_6_endless_refill_of_a_failing_template",
                ],
            },
            Fault {
                what: "a sandbox's interface is gone after a restart",
                told: "its claim is FAILED with `NETWORK_LOST`",
                others: NOTHING,
                after: "the sandbox is destroyed",
                tests: &[
                    "one_whose_interface_is_gone_is_not_handed_out_and_its_claim_says_so",
                    "a_reconciliation_tells_what_runs_and_has_lost_its_interface",
                ],
            },
        ],
    ),
];

/// `docs/faults.md`.
pub fn document() -> String {
    let mut out = String::from(
        "# What fails, and what it costs\n\n\
         Written from the table in `tests/support/faults.rs` (`UPDATE=1 cargo test --test api_docs`), which refuses a test that does\n\
         not exist and a reason that none of the tests looks for. Statuses are explained in [statuses.md](statuses.md).\n",
    );
    for (area, faults) in FAULTS {
        writeln!(out, "\n## {area}\n").unwrap();
        out.push_str("| fault | its caller is told | others notice | afterwards | proved by |\n");
        out.push_str("|---|---|---|---|---|\n");
        for fault in *faults {
            let tests = fault.tests.iter().map(|name| format!("`{name}`"));
            let tests = tests.collect::<Vec<_>>().join(" ");
            let (what, told) = (fault.what, fault.told);
            let (others, after) = (fault.others, fault.after);
            writeln!(out, "| {what} | {told} | {others} | {after} | {tests} |").unwrap();
        }
    }
    out
}
