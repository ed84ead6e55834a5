"""What becomes of each fault and attack, and the tests that show it; those that have no other home are here.

`ROWS` are the faults that other frameworks and hospitals met: those of a run, of a simulation on a cluster,
of messages and numbers, and of those who mean harm. A row whose entry begins with "not built" says why.
"""

import ast
import re
import time
import tomllib
from dataclasses import replace

import jax
import numpy as np
import optax
import psutil
import pytest
from msgspec import structs

import fedjax_core as fc
from fedjax_core.sites.policy import Policy, policy
from fedjax_core.sites.protocol.kinds import KINDS
from fedjax_core.sites.site.endpoint import Site
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study
from fedjax_core.sites.wire.envelope import Header, decode, encode, header_of
from fedjax_core.sites.wire.identity import SiteKey
from tests.conftest import REPOSITORY
from tests.sites.faulty import changed
from tests.sites.federations import BATCH, COORDINATOR, EPOCHS, NAMES, columns, federation, site_files
from tests.zoo import round_of, task

ROWS = {
    # A run.
    "coordinator killed between rounds": """
        tests/sites/test_federation.py::test_killed_anywhere_and_started_again_it_ends_bit_for_bit
        tests/run/test_kill.py::test_killed_twice
        tests/consortium/test_kills.py::test_killed_and_started_again_it_ends_bit_for_bit""",
    "coordinator killed before broadcast, after k of n results, after aggregation, in a checkpoint, before its commit": """
        tests/consortium/test_kills.py::test_killed_and_started_again_it_ends_bit_for_bit
        tests/consortium/test_box.py::test_the_coordinator_is_killed_at_every_point
        tests/run/test_checkpoint.py::test_half_written_remains_are_removed""",
    "many of these and of the faults of messages in one run, drawn at random": """
        tests/sites/test_chaos.py::test_whatever_happens_the_bits_are_the_same
        tests/sites/test_chaos.py::test_an_asynchronous_run_can_be_made_again_from_its_audit_log_whatever_happened
        tests/scripts/test_soak.py::test_a_run_in_which_things_are_killed_is_told_to_end_with_the_same_bits""",
    "all fall back to a checkpoint": """
        tests/sites/test_federation.py::test_a_coordinator_that_falls_back_takes_its_sites_back""",
    "many rounds since the checkpoint, or the newest one damaged: what sites keep is still there, and no more than is needed": """
        tests/sites/site/test_client_state.py::test_a_run_resumes_however_rare_its_checkpoints_are
        tests/sites/site/test_client_state.py::test_a_site_that_is_late_for_long_keeps_little_and_what_counted
        tests/sites/site/test_client_state.py::test_a_site_declines_rather_than_forget_what_the_run_needs""",
    "nobody takes part in a round": """
        tests/test_backends.py::test_a_round_of_nobody_changes_nothing_but_its_number""",
    "a client whose numbers cannot be used in the first of several exchanges": """
        tests/test_backends.py::test_a_client_refused_in_one_exchange_is_out_of_the_round""",
    "all participants killed at once": """
        tests/consortium/test_box.py::test_everything_is_killed_at_once""",
    "corrupt or truncated newest checkpoint: the one before, and the log says so": """
        tests/run/test_checkpoint.py::test_a_damaged_newest_falls_back_says_so_and_is_set_aside
        tests/run/test_resume.py::test_a_damaged_newest_costs_rounds_and_not_the_answer
        tests/run/test_encryption.py::test_a_damaged_newest_falls_back_as_a_plain_one_does""",
    "the same, with an entry in the audit log": """
        tests/sites/test_federation.py::test_what_a_run_goes_on_from_is_in_the_audit_log""",
    "changed configuration before a resume": """
        tests/run/test_resume.py::test_a_changed_configuration_is_refused_by_name
        tests/run/test_resume.py::test_changed_data_and_settings_are_refused_by_name""",
    "the same, with a flag that overrides": """
        tests/run/test_resume.py::test_a_changed_configuration_is_refused_by_name
        tests/sites/test_federation.py::test_a_run_goes_on_with_another_configuration_where_it_is_told_to""",
    "site killed at work, its node killed": """
        tests/consortium/test_box.py::test_a_site_and_a_node_are_killed
        tests/sites/transport/test_ray_actors.py::test_four_site_processes_follow_the_stored_weights""",
    "site lost for a round: quorum, renormalised weights, its name in the audit": """
        tests/sites/test_faults.py::test_as_if_the_site_had_not_been_asked
        tests/sites/test_federation.py::test_the_audit_says_who_was_asked""",
    "site away when the run begins or is resumed": """
        tests/sites/coordinator/test_absent.py::test_a_run_begins_with_those_who_are_there_and_the_other_joins
        tests/sites/coordinator/test_absent.py::test_too_few_to_begin_is_said_at_once_by_name
        tests/sites/coordinator/test_absent.py::test_a_study_that_prepares_columns_needs_all_sites_and_names_at_once_who_is_missing
        tests/sites/transport/test_ray_actors.py::test_who_cannot_start_is_known_by_name_and_nobody_waits_for_whom_there_is_no_place
        tests/consortium/test_screen.py::test_the_box_waits_for_all_sites_unless_told_otherwise_and_says_for_whom""",
    "machine of a site dead for many rounds: its deadline once, then a grace, and its name on screen once": """
        tests/sites/coordinator/test_absent.py::test_a_site_that_is_silent_costs_its_deadline_once_and_then_a_grace_until_it_answers
        tests/sites/coordinator/test_absent.py::test_a_site_whose_connection_fails_only_after_a_while_costs_that_once
        tests/sites/coordinator/test_absent.py::test_who_is_absent_is_said_when_it_changes
        tests/sites/coordinator/test_absent.py::test_what_nobody_waits_for_is_not_begun
        tests/consortium/test_screen.py::test_a_round_that_lacked_a_site_is_said_at_once_and_the_coordinator_is_heard""",
    "site returns after missing rounds": """
        tests/sites/test_faults.py::test_as_if_the_site_had_not_been_asked
        tests/sites/multipart/test_replies.py::test_what_was_cut_is_taken_up_where_it_was""",
    "all but one lost, below the quorum": """
        tests/sites/test_faults.py::test_below_the_quorum_nothing_is_averaged_and_the_round_can_be_run_again
        tests/sites/test_faults.py::test_a_share_of_the_examples_may_be_asked_for
        tests/sites/coordinator/test_absent.py::test_a_pause_says_of_each_site_why""",
    "straggler: one deadline for a round, of however many exchanges": """
        tests/sites/policy/test_enforcement.py::test_a_round_has_one_deadline
        tests/sites/coordinator/test_absent.py::test_of_several_exchanges_each_has_a_part_of_the_time
        tests/sites/test_faults.py::test_with_enough_reports_the_others_are_not_waited_for
        tests/sites/test_faults.py::test_waiting_ends_when_nothing_comes_for_a_while""",
    "straggler: its partial work is used, and repeated to the same bits": """
        tests/sites/site/test_time_limit.py::test_a_round_of_partial_work_is_that_of_plain_loops_and_says_so
        tests/sites/site/test_time_limit.py::test_asked_the_same_again_a_site_does_as_many_steps_whatever_its_clock
        tests/sites/site/test_time_limit.py::test_a_site_that_died_before_it_answered_may_do_another_number_of_steps_which_is_recorded
        tests/sites/site/test_time_limit.py::test_a_site_with_no_step_done_sends_nothing""",
    "partial work that is not said, or cannot be": """
        tests/sites/site/test_time_limit.py::test_a_report_that_says_what_cannot_be_is_set_aside""",
    "slow work, longer than any idle time": """
        tests/sites/policy/test_enforcement.py::test_progress_is_no_idleness""",
    "slow link, large payload": """
        tests/sites/multipart/test_replies.py::test_a_link_slower_than_any_timeout_is_waited_for_while_parts_come
        tests/sites/multipart/test_replies.py::test_of_a_damaged_part_only_that_part_is_asked_for_again
        tests/sites/multipart/test_requests.py::test_a_link_slower_than_any_timeout_is_waited_for_while_parts_go""",
    "a large request whose parts are lost, repeated, reordered or changed": """
        tests/sites/multipart/test_requests.py::test_as_if_nothing_had_been""",
    "a large request that is cut, by the link, a restart of the site, or of the coordinator": """
        tests/sites/multipart/test_requests.py::test_what_was_cut_is_taken_up_where_it_was
        tests/sites/multipart/test_requests.py::test_a_transfer_that_is_cut_at_any_part_ends_and_no_part_that_came_is_sent_again
        tests/sites/multipart/test_requests.py::test_a_coordinator_that_began_anew_goes_on_where_the_one_before_was_killed""",
    "memory over 500 rounds": """
        tests/sites/test_fault_matrix.py::test_memory_is_flat_over_rounds
        tests/scripts/test_benchmarks.py::test_a_slope_is_in_bytes_a_round""",
    # The figures: scripts/bench_sites.py --cases memory.
    "coordinator's peak memory against the number of sites": """
        tests/sites/test_faults.py::test_reports_that_come_before_their_turn_wait_where_they_lie
        tests/sites/multipart/test_replies.py::test_a_length_that_is_only_said_takes_no_memory""",
    "full disk": """
        tests/run/test_resume.py::test_a_disk_that_fills_costs_rounds_and_not_the_answer
        tests/sites/audit/test_log.py::test_a_full_disk_stops_the_work_and_leaves_the_log_whole""",
    # A simulation on a cluster.
    "worker killed within a round or between rounds, with what clients keep sent to it or in its files": """
        tests/cluster/test_cluster.py::test_who_dies_joins_or_leaves_changes_no_bit
        tests/cluster/test_cluster.py::test_who_dies_with_rows_in_files_changes_no_bit
        tests/cluster/test_cluster.py::test_all_workers_die_and_others_go_on
        tests/client_state/test_record_files.py::test_a_share_may_be_left_halfway_and_done_again""",
    "worker that hangs": """
        tests/cluster/test_cluster.py::test_who_hangs_is_found_by_the_clock_and_changes_no_bit""",
    "Ray node lost": """
        tests/cluster/test_node.py::test_a_node_that_is_lost_changes_no_bit""",
    "driver killed, alone or with all of Ray": """
        tests/cluster/test_kill.py::test_killed_and_started_again_it_ends_bit_for_bit""",
    "rows of clients cut, torn, older, or of another run": """
        tests/client_state/test_record_files.py::test_what_was_not_written_is_not_taken_for_a_row
        tests/cluster/test_shard.py::test_workers_who_see_another_folder_say_so""",
    # Messages and numbers.
    "duplicate, replayed or stale update": """
        tests/sites/wire/test_replay.py::test_a_message_is_heard_once_and_others_beside_it
        tests/sites/wire/test_replay.py::test_other_rounds_are_refused
        tests/sites/test_federation.py::test_the_same_request_gets_the_same_bytes_and_an_old_one_is_refused
        tests/sites/test_faults.py::test_as_if_nothing_had_been""",
    "bit flip in transit": """
        tests/sites/test_faults.py::test_as_if_nothing_had_been
        tests/sites/wire/test_envelope.py::test_refused""",
    "bit flip in what a site keeps": """
        tests/sites/site/test_client_state.py::test_a_version_is_whole_or_not_there""",
    "NaN, Inf, shape, dtype, tree, absurd weight or norm": """
        tests/sites/coordinator/test_validation.py::test_quarantined
        tests/sites/test_faults.py::test_as_if_the_site_had_not_been_asked""",
    "zero or empty aggregate": """
        tests/sites/policy/test_enforcement.py::test_reports_that_add_up_to_nothing_stop_the_run""",
    "a filter that wipes updates": """
        tests/sites/policy/test_enforcement.py::test_what_the_uplink_leaves_is_told_and_little_is_warned_of""",
    "poisoned update: sign flipped, scaled": """
        tests/sites/test_fault_matrix.py::test_one_who_poisons_shifts_a_trimmed_mean_little
        tests/aggregators/test_aggregators.py::test_trimmed_mean_withstands_wild_reports""",
    "wrong clock": """
        tests/sites/policy/test_enforcement.py::test_a_wrong_clock_is_refused_by_how_much""",
    "changed data": """
        tests/sites/test_federation.py::test_a_change_of_data_must_be_declared""",
    "bad records": """
        tests/sites/policy/test_enforcement.py::test_bad_records_are_skipped_and_counted
        tests/sites/policy/test_enforcement.py::test_with_more_bad_records_a_site_takes_no_part""",
    # Those who mean harm, and what a site insists on.
    "no certificate, another authority, another name, expired": """
        tests/sites/transport/test_certificates.py::test_another_authority_is_refused_even_of_the_same_name
        tests/sites/transport/test_certificates.py::test_openssl_takes_the_certificate_for_its_hosts_and_no_others
        tests/sites/transport/test_certificates.py::test_one_that_is_not_valid_now_is_refused
        tests/consortium/test_strangers.py::test_a_stranger_is_refused_with_a_message_of_its_own
        tests/consortium/test_box.py::test_it_listens_on_loopback_alone_and_takes_nobody_without_certificate""",
    "revoked certificate": "not built: Ray's gRPC reads no such list; the authority is made anew, and a site's own key is revoked, below",
    "revoked, unknown or another's key": """
        tests/sites/wire/test_identity.py::test_who_signed_is_told_apart
        tests/sites/test_faults.py::test_as_if_the_site_had_not_been_asked""",
    "stolen token": """
        tests/consortium/test_strangers.py::test_a_stranger_is_refused_with_a_message_of_its_own""",  # a token needs a certificate
    "plaintext Ray, no token": """
        tests/sites/transport/test_ray_security.py::test_each_lack_is_refused_with_its_own_message
        tests/sites/transport/test_ray_security.py::test_a_ray_that_is_not_ours_is_refused_before_anything_is_sent
        tests/sites/transport/test_ray_actors.py::test_a_federation_does_not_join_a_ray_without_protection""",
    "tampered or unsigned job or code": """
        tests/sites/site/test_endpoint.py::test_a_study_is_built_from_what_is_installed
        tests/sites/policy/test_policy.py::test_nothing_is_allowed_that_nobody_named
        tests/sites/policy/test_policy.py::test_the_first_task_is_pinned_and_others_refused""",
    "malicious pickle, deep nesting, oversize, wrong schema, fuzz": """
        tests/sites/wire/test_envelope.py::test_nothing_but_a_refusal_ever_comes_of_bytes
        tests/sites/wire/test_envelope.py::test_limits_hold
        tests/sites/wire/test_tensors.py::test_limits_hold
        tests/sites/wire/test_canonical.py::test_deep_nesting_is_refused""",
    "a large request of another length, with other parts, or larger than a site takes": """
        tests/sites/multipart/test_requests.py::test_a_site_refuses_it_with_its_own_message_takes_no_memory_and_goes_on
        tests/sites/multipart/test_requests.py::test_a_request_that_is_not_what_was_signed_is_not_read_though_every_part_is
        tests/sites/multipart/test_requests.py::test_a_site_takes_no_request_that_is_larger_than_its_memory_and_none_while_it_is_paused
        tests/sites/multipart/test_requests.py::test_an_older_announcement_changes_nothing_unless_it_is_made_anew""",
    "a site that lies about which parts it lacks": """
        tests/sites/multipart/test_requests.py::test_a_site_that_lies_about_what_it_lacks_is_left_out
        tests/sites/multipart/test_requests.py::test_a_site_that_lacks_parts_again_and_again_is_given_up""",
    "path traversal in names": """
        tests/sites/wire/test_canonical.py::test_names_that_would_do_harm_are_refused""",
    "zip bomb in an artefact": "not built: nothing compressed travels; the sizes of what does are limited, above",
    "audit log edited, cut, reordered, written anew, pruned": """
        tests/sites/audit/test_log.py::test_every_changed_byte_is_found
        tests/sites/audit/test_log.py::test_each_way_of_changing_a_log_is_found
        tests/sites/audit/test_log.py::test_a_log_written_anew_with_the_right_key_is_found_by_an_exported_head
        tests/sites/audit/test_log.py::test_a_log_that_was_cut_is_found_without_a_head_and_when_it_is_opened_again
        tests/sites/audit/test_held.py::test_what_is_cut_off_at_one_end_the_other_end_knows
        tests/sites/audit/test_retention.py::test_more_cannot_be_taken_away_than_was_signed""",
    "somebody does what is not theirs to do": """
        tests/sites/test_fault_matrix.py::test_only_the_coordinator_is_answered_whatever_is_asked
        tests/sites/test_federation.py::test_sites_refuse_what_is_not_theirs_to_answer""",
    "secure aggregation with dropout": """
        tests/secure_aggregation/test_protocol.py::test_one_pattern_of_each_kind
        tests/sites/coordinator/test_secure.py::test_a_site_that_drops_out_at_any_stage_is_recovered
        tests/sites/coordinator/test_secure.py::test_below_the_threshold_the_round_ends_by_name_and_nothing_comes_out
        tests/sites/coordinator/test_secure.py::test_a_coordinator_and_a_site_that_are_killed""",
    "small cohort or cell": """
        tests/sites/test_federation.py::test_a_policy_is_asked_before_work_and_before_anything_leaves
        tests/sites/policy/test_policy.py::test_no
        tests/sites/site/test_preprocessing.py::test_the_minimum_of_examples_and_of_a_cell_hold""",
    "a pair of queries that differ in one person": "not built: a request chooses no rows, so such a pair takes a change of the data, above",
    "fields, norm, hours, pause": """
        tests/sites/policy/test_policy.py::test_what_may_leave
        tests/sites/policy/test_policy.py::test_hours_are_those_of_the_site
        tests/sites/test_federation.py::test_a_policy_is_asked_before_work_and_before_anything_leaves""",
    "an epsilon that is spent, and an account that a crash or a removed file would lose": """
        tests/sites/policy/test_privacy_ledger.py::test_a_site_tells_no_more_than_its_policy_lets_it
        tests/sites/policy/test_privacy_ledger.py::test_a_ledger_that_is_gone_is_made_of_the_audit_and_a_damaged_one_is_refused""",
    "withdrawal": """
        tests/sites/policy/test_enforcement.py::test_a_site_that_withdrew_says_so_and_contributes_no_more""",
    "caps on seconds, memory, CPUs": """
        tests/sites/policy/test_enforcement.py::test_caps_end_the_work_and_nothing_leaves
        tests/sites/policy/test_enforcement.py::test_caps_of_a_day_last_over_restarts
        tests/sites/policy/test_enforcement.py::test_a_process_is_confined""",
    "values of data in messages, logs, errors, checkpoints": """
        tests/sites/test_leaks.py::test_nothing_of_a_site_is_in_messages_logs_checkpoints_or_the_files_of_others
        tests/sites/test_leaks.py::test_nothing_of_a_site_is_in_rays_own_logs""",
    "documents that say other than the code": """
        tests/test_docs.py::test_the_settings_that_they_name_are_there
        tests/test_docs.py::test_every_code_of_a_refusal_is_in_the_page_of_what_to_do
        tests/sites/test_fault_matrix.py::test_what_the_documents_show_is_what_the_code_reads
        tests/sites/test_fault_matrix.py::test_every_row_names_tests_that_are_there""",
}


def named_in(path: str) -> set[str]:
    return {
        node.name
        for node in ast.parse((REPOSITORY / path).read_text()).body
        if isinstance(node, ast.FunctionDef)
    }


def test_every_row_names_tests_that_are_there():
    """Of this table, and of the threat model in docs/sites-privacy.md."""
    named = [name for row in ROWS.values() if not row.startswith("not built: ") for name in row.split()]
    table = (REPOSITORY / "docs" / "sites-privacy.md").read_text().partition("## Threat model")[2]
    assert len(named) > 80 and len(ROWS) > 40
    for name in named + re.findall(r"`(tests/[^`]+)`", table):
        path, _, test = name.partition("::")
        assert (REPOSITORY / path).exists() and (not test or test in named_in(path)), name


ROLES = {
    "another site": lambda header: encode(structs.replace(header, sender="mayo"), {}, SiteKey.make("mayo")),
    "a stranger by the coordinator's name": lambda header: encode(header, {}, SiteKey.make("coordinator")),
    "the site itself": lambda header: encode(structs.replace(header, sender="charite"), {}, SITE),
    "somebody who changes what the coordinator signed": lambda header: encode(
        header, {}, COORDINATOR
    ).replace(b'"run":"run"', b'"run":"nur"'),
}
CODES = {
    "another site": "unknown-sender",
    "a stranger by the coordinator's name": "wrong-key",
    "the site itself": "unknown-sender",
}
SITE = SiteKey.make("charite")
ASKED = [*KINDS, *{kind.reply for kind in KINDS.values()}, "refusal", "shell"]


@pytest.mark.parametrize("role", [*ROLES, "the coordinator"])
def test_only_the_coordinator_is_answered_whatever_is_asked(role, tmp_path):
    """Every role with every kind of message: the matrix is made of the table by which a site knows the
    kinds."""
    SITE.save(tmp_path)
    about = replace(site_files()[0], key=tmp_path / "charite.key")
    study = Study(round_of("fedavg"), BATCH, EPOCHS)
    with Site(about, study, COORDINATOR.public) as site:
        for kind in ASKED:
            header = Header(
                kind=kind, run="run", round=0, exchange=0, sender="coordinator", recipient="sites", sequence=time.time_ns(),
                created_unix_ms=int(time.time() * 1000), config=study.hash,
            )  # fmt: skip
            said = header_of(
                site.handle(ROLES.get(role, lambda header: encode(header, {}, COORDINATOR))(header))
            )
            if role == "the coordinator":
                assert (
                    said.kind == KINDS[kind].reply
                    if kind == "describe"
                    else said.fields["code"] not in {*CODES.values(), "bad-signature"}
                )
                assert (said.fields.get("code") == "wrong-kind") == (kind not in KINDS)
            else:
                assert (said.kind, said.fields["code"]) == ("refusal", CODES.get(role, "bad-signature"))


def poisoned(aggregator, factor):
    """The loss on all examples after three rounds in which one of four sites sends its update times `factor`.

    A federation's own evaluation would leave out a site whose loss is absurd beside the others'."""
    box = {}

    def fault(send, site, request, n):
        def poison(raw):
            header, tensors = decode(raw, box["fed"]._roster, recipient="coordinator")
            return encode(
                header,
                {name: x * np.float32(factor) for name, x in tensors.items()},
                box["sites"][1].context.key,
            )

        return (
            changed(send(site, request), poison)
            if (site, header_of(request).kind) == (NAMES[1], "train")
            else send(site, request)
        )

    algorithm = fc.algorithms.fedavg(task(), optax.sgd(0.1), weighting=fc.algorithms.uniform)
    with federation(fc.compose(algorithm, aggregator=aggregator), fault=fault) as (fed, sites, _):
        box |= {"fed": fed, "sites": sites}
        state = fed.init(jax.random.key(1))
        for _ in range(3):
            state, _ = fed.run(state, [0, 1, 2, 3])
    return fc.evaluate(task(), state.params, fc.Clients.from_list(columns())).pooled["loss"]


@pytest.mark.slow  # default: tests/aggregators
def test_one_who_poisons_shifts_a_trimmed_mean_little():
    clean = poisoned(fc.aggregators.trimmed_mean(0.25), 1)
    for factor in (-10, 100):
        assert (
            poisoned(fc.aggregators.trimmed_mean(0.25), factor)
            < 1.1 * clean
            < poisoned(fc.aggregators.mean(), factor) / 2
        )


@pytest.mark.slow
def test_memory_is_flat_over_rounds():
    """Of the coordinator and four sites in one process, over the last 200 of 500 rounds."""
    with federation(round_of("scaffold", 4)) as (fed, _, transport):
        state, found = fed.init(jax.random.key(1)), []
        for _ in range(500):
            state, _ = fed.run(state, [0, 1, 2, 3])
            transport.sent.clear()
            transport.received.clear()
            found.append(psutil.Process().memory_info().rss)
    rise = np.polyfit(np.arange(200), found[-200:], 1)[0]
    print(f"{rise:.0f} bytes a round")
    assert rise < 10_000


def test_what_the_documents_show_is_what_the_code_reads(tmp_path):
    """The files in docs/sites-setup.md, and the policy in its module's docstring, which shows every setting
    that there is."""
    site, shown = re.findall(
        r"```toml\n(.*?)```", (REPOSITORY / "docs" / "sites-setup.md").read_text(), re.DOTALL
    )
    whole = policy.__doc__.partition("\n\n")[2].partition("A setting that is missing")[0]
    for name, text in (("site", site), ("shown", shown), ("whole", whole)):
        (tmp_path / f"{name}.toml").write_text(re.sub(r"(?m)^ {3,4}", "", text))
    assert (
        SiteFile.read(tmp_path / "site.toml").name == Policy.read(tmp_path / "shown.toml").site == "charite"
    )
    found, tables = Policy.read(tmp_path / "whole.toml"), tomllib.loads((tmp_path / "whole.toml").read_text())
    for name in ("tasks", "minimum", "leaving", "evaluation", "hours", "caps"):
        assert set(tables[name]) == set(vars(getattr(found, name))), name
    assert set(tables) | {"withdrawn"} == set(vars(found))
