"""What both packages promise, and for each promise the tests that show it in seconds: `make fast` runs these.

An entry is a file, a test, or one case of a test. All other tests are more of the same: other cases, sizes, refusals,
combinations. `python -m tests.promises` prints the files. All entries together take about a minute of one core: a new
one is cheap, or replaces another.
"""

PROMISES: dict[str, tuple[str, ...]] = {
    # Both packages
    "imports run downwards, and jaxfed runs without jaxspec": ("house/test_imports.py",),
    "what is declared, pinned and shipped agrees": ("house/test_house.py",),
    "checkpoints of earlier releases load": ("house/test_release.py::test_every_kind_of_leaf_is_loaded",),
    # jaxfed
    "FedSpeed follows the equations of its paper": (
        "jaxfed/algorithms/test_fedspeed.py::test_paper_form[0.3-raw-cohort]",
        "jaxfed/algorithms/test_fedspeed.py::test_unknown_hyperparameter_names_the_nearest",
    ),
    "algorithms give the recorded trajectories of reference code": (
        "jaxfed/algorithms/test_trajectories.py::test_trajectory[fedspeed_softmax_base]",
        "jaxfed/algorithms/test_trajectories.py::test_trajectory[scaffold_softmax_base]",
    ),
    "an algorithm learns, compiles once, and gives the same under every plan": (
        "jaxfed/algorithms/test_conformance.py::test_learns[fedspeed]",
        "jaxfed/algorithms/test_conformance.py::test_one_trace_and_one_program_for_all_rounds[fedspeed]",
        "jaxfed/algorithms/test_conformance.py::test_absent_clients_keep_their_rows[fedspeed]",
        "jaxfed/algorithms/test_conformance.py::test_plans_agree_in_float32[fedspeed]",
    ),
    "any model trains": ("jaxfed/models/test_models.py::test_any_model_trains[by hand]",),
    "convolutions equal those of XLA": ("jaxfed/models/test_convolution.py::test_equals_xla[1-3]",),
    "cohorts are those of the reference": (
        "jaxfed/core/test_samplers.py::test_the_reference_rule_gives_the_recorded_cohorts[n100_r0.1_s20]",
    ),
    "data is split as recorded, and every sample is seen once an epoch": (
        "jaxfed/data/test_partition.py::test_recycling_equals_the_recorded_split",
        "jaxfed/data/test_data.py::test_an_epoch_sees_every_sample_of_the_client_once_and_no_others",
        "jaxfed/data/test_datasets.py::test_idx_of_every_type",
    ),
    "messages are clipped, compressed and noised as said": (
        "jaxfed/messages/test_uplink.py::test_clip_bounds_the_norm_of_everything_together",
        "jaxfed/messages/test_uplink.py::test_quantised_entries_are_neighbouring_levels_and_right_on_average[4]",
        "jaxfed/messages/test_uplink.py::test_epsilon_of_one_full_round_is_the_gaussian_mechanism",
    ),
    "every store of client rows gives the same run": (
        "jaxfed/rows/test_stores.py::test_every_tier_gives_the_same_run[fedspeed-disk]",
    ),
    "a run continues bit for bit": (
        "jaxfed/run/test_continuing.py::test_a_state_continues_bit_for_bit_and_a_server_alone_is_refused[fedspeed]",
    ),
    "a checkpoint gives back every leaf, and damage is named": (
        "jaxfed/checkpoint/test_checkpoint.py::test_every_kind_of_leaf_and_container_comes_back",
        "jaxfed/checkpoint/test_checkpoint.py::test_a_flipped_bit_in_any_file_is_named",
        "jaxfed/checkpoint/test_checkpoint.py::test_the_older_step_named_after_damage_loads",
    ),
    "Flower carries every dtype": ("jaxfed/flower/test_flower.py::test_dtypes_cross",),
    # jaxspec
    "Mirror-SD is the paper's, step by step": (
        "jaxspec/methods/test_mirror_reference.py::test_every_step_is_that_of_the_reference[(3, 1, 2)]",
        "jaxspec/methods/test_mirror_reference.py::test_the_reference_writes_the_targets_text_and_meets_every_case",
    ),
    "speculative decoding writes the target's text": (
        "jaxspec/methods/test_identity.py::test_autoregressive_is_greedy_decoding_without_a_cache",
        "jaxspec/methods/test_identity.py::test_speculative[3]",
    ),
    "the ratio test keeps the target's distribution": (
        "jaxspec/verify/test_acceptance.py::test_one_step_of_ratio_has_the_law_of_the_target[any]",
    ),
    "windows are accepted as far as they match": ("jaxspec/verify/test_verify.py",),
    "filters keep what sorting keeps, and noise depends on seed and position": (
        "jaxspec/verify/test_sampling.py::test_filters_against_sorting[random_logits-0.3-{'top_k': 8, 'top_p': 0.8}]",
        "jaxspec/verify/test_sampling.py::test_noise_belongs_to_seed_and_position",
    ),
    "candidates are ranked by probability": (
        "jaxspec/methods/test_candidates.py::test_message_holds_the_most_likely_tokens_that_were_not_drafted[2]",
        "jaxspec/methods/test_candidates.py::test_ranking_is_the_probability_of_each_outcome[2-0.5-3]",
    ),
    "bad input is refused by name": ("jaxspec/methods/test_errors.py::test_bad_input",),
    "the decoder follows its equations, and its cache changes nothing": (
        "jaxspec/models/test_decoder.py::test_decoder_follows_its_equations[grouped]",
        "jaxspec/models/test_cache.py::test_rows_are_written_at_each_sequences_position[2]",
    ),
    "a lookahead stream sees the text before it": (
        "jaxspec/drafts/test_streams.py::test_a_stream_sees_its_own_place_and_what_lies_before",
    ),
    "the token channel loses no bit": ("jaxspec/devices/test_channel.py::test_a_message_comes_back",),
    "a second call compiles nothing": (
        "jaxspec/devices/test_compilation.py::test_a_second_call_compiles_nothing[speculative]",
    ),
    "text comes back from tokens, and stops where asked": (
        "jaxspec/text/test_tokenizer.py::test_round_trip_of_the_text_of_all_roles[160]",
        "jaxspec/text/test_stopping.py::test_stop_strings[1-ids2-stop2-one t-3-stop]",
    ),
    "a published model is read back to the bit": (
        "jaxspec/loading/test_huggingface.py::test_what_is_written_reads_back_to_the_bit[llama]",
        "jaxspec/loading/test_huggingface.py::test_a_spoilt_folder_is_named[truncated]",
    ),
    "training resumes bit for bit": ("jaxspec/training/test_fit.py::test_fit_resumes_bit_for_bit[5]",),
    "federation measures the acceptance that decoding has": (
        "jaxspec/federated/test_federated.py::test_accepted_length_is_that_of_a_real_decode[draft-3]",
    ),
    "the cost model is the paper's": ("jaxspec/analysis/test_cost.py::test_step_time",),
    "the embedded pair decodes": ("jaxspec/zoo/test_zoo.py::test_a_loaded_pair_decodes",),
}

if __name__ == "__main__":
    print(*sorted({f"tests/{name.partition('::')[0]}" for names in PROMISES.values() for name in names}))
