"""Which tests `make test` leaves to `make test-all`: they are marked `long`; and which that leaves to `make test-slow`.

The rule: a test is long that takes more than four CPU seconds, or that belongs to a proof repeated over many processes,
launchers, faults or encoders, as long as quicker tests of the same code are in `make test`. A new test that is as
expensive gets a line here; `make test-all` prints the slowest twenty.
"""

LONG = {
    "tests/distributed/test_any_timm_processes.py": "encoders on two processes",
    "tests/distributed/test_collectives.py::test_all_processes_communicate_in_the_same_order": "four processes, traced",
    "tests/distributed/test_ends.py::test_processes_do_not_wait_for_the_advice_of_one_whose_memory_is_full": "it waits",
    "tests/distributed/test_evaluate_cells.py": "runs of four processes",
    "tests/distributed/test_every_encoder.py::test_fsdp2_shards_every_weight_and_gathers_it_block_by_block": "the same",
    "tests/distributed/test_every_encoder.py::test_two_processes_with_unequal_shares_equal_one": "each encoder, twice",
    "tests/distributed/test_fsdp.py::test_a_missing_part_is_named": "a run of two processes",
    "tests/distributed/test_fsdp.py::test_a_run_moves_between_engines_bands_and_numbers_of_processes": "four runs",
    "tests/distributed/test_fsdp.py::test_parts_are_merged_into_a_plain_checkpoint": "a run of two processes",
    "tests/distributed/test_fsdp.py::test_parts_of_two_checkpoints_are_not_taken_for_one": "runs of two processes",
    "tests/distributed/test_fused_adam.py::test_a_run_moves_between_the_optimizers_of_gpus_and_cpus": "three runs each",
    "tests/distributed/test_fused_adam.py::test_fp16_overflow_is_known_where_the_optimizer_skips_steps_itself": (
        "runs, repeated"
    ),
    "tests/distributed/test_joining.py::test_a_first_process_that_never_answers_does_not_hold_the_others": "it waits",
    "tests/distributed/test_joining.py::test_a_process_whose_peer_never_comes_ends_in_one_line": "it waits",
    "tests/distributed/test_joining.py::test_what_only_the_first_process_cannot_write_ends_all_with_one_line": "6 runs",
    "tests/distributed/test_label_processes.py": "nine runs on two processes each",
    "tests/distributed/test_launches.py": "real launchers, and every command",
    "tests/distributed/test_machines.py": "two real launchers; two machines, three runs of them",
    "tests/distributed/test_preemption.py::test_wherever_a_process_is_asked_to_stop_all_save_and_end": "many runs",
    "tests/distributed/test_processes.py::test_a_run_resumes_with_another_number_of_processes": "four runs",
    "tests/distributed/test_processes.py::test_the_real_launcher_trains_one_model_on_two_processes": "a real launcher",
    "tests/distributed/test_reproducible.py::test_bits_do_not_depend_on_the_processes": "four launches each",
    "tests/distributed/test_resume_bits.py": "engine by level by processes, each three runs",
    "tests/distributed/test_resume_processes.py": "runs of two processes, damaged and resumed",
    "tests/distributed/test_saving_processes.py::test_all_train_on_while_one_writes": "runs of two processes",
    "tests/distributed/test_spatial_encoders.py": "encoders on two processes",
    "tests/distributed/test_spatial_parallel.py::test_bands_equal_whole_images_in_fp64": "large images, four strips",
    "tests/distributed/test_spatial_parallel_runs.py": "whole runs of two processes",
    "tests/distributed/test_training_recipes.py::test_a_frozen_encoder_with_batch_norm_is_the_same_on_two_processes": (
        "runs of two processes"
    ),
    "tests/distributed/test_training_recipes.py::test_two_processes_equal_one_and_their_checkpoints_are_everybody_s": (
        "recipe by engine, three runs each"
    ),
    "tests/distributed/test_waiting.py": "a run of two processes that waits",
    "tests/distributed/test_warnings_processes.py": "runs of two processes",
    "tests/end_to_end/test_app.py": "a server, and a browser",
    "tests/end_to_end/test_bench_gpu.py": "every check of the proof run, and each once more with something broken",
    "tests/end_to_end/test_bench_predict.py::test_each_cell_is_a_row_that_is_kept": "processes",
    "tests/end_to_end/test_bench_predict.py::test_the_baseline_is_measured_beside_ours": "processes",
    "tests/end_to_end/test_bench_resolution.py::test_each_rung_is_a_row_with_figures_and_circumstances": "processes",
    "tests/end_to_end/test_bench_resolution.py::test_out_of_memory_is_a_row_and_the_benchmark_goes_on": "processes",
    "tests/end_to_end/test_bench_resolution.py::test_the_peer_is_measured_beside_ours": "a process",
    "tests/end_to_end/test_bench_scaling.py::test_each_engine_is_measured_once": "launches",
    "tests/end_to_end/test_data_report.py::test_a_real_browser_filters_sorts_and_has_no_error": "a browser",
    "tests/end_to_end/test_endings.py::test_a_stop_between_micro_batches_is_a_stop_after_the_step": "five runs",
    "tests/end_to_end/test_endings.py::test_steps_that_overflow_fp16_are_repeated_and_a_restart_changes_no_bit": "runs",
    "tests/end_to_end/test_endings.py::test_what_only_has_the_name_of_a_checkpoint_stops_no_run": "a run each of 11",
    "tests/end_to_end/test_examples.py::test_an_example_runs_by_the_command_in_its_first_lines[estimate_memory.py]": (
        "counts of others' networks"
    ),
    "tests/end_to_end/test_launch_program.py": "real launchers",
    "tests/end_to_end/test_launchers.py": "real launchers",
    "tests/end_to_end/test_light_training.py::test_evaluating_and_predicting_import_no_more": "two new interpreters",
    "tests/end_to_end/test_light_training.py::test_what_a_config_asks_for_is_imported": "a new interpreter",
    "tests/end_to_end/test_own_images.py::test_the_page_leads_from_a_folder_to_masks": "six commands",
    "tests/end_to_end/test_prediction_report.py::test_the_commands_of_the_page_run": "a prediction, and its report",
    "tests/end_to_end/test_readme.py::test_the_workflow_of_readme_runs_from_the_first_command_to_the_last": (
        "twenty commands, each a new interpreter"
    ),
    "tests/end_to_end/test_resume.py::test_a_disk_that_fills_up_is_one_line_and_the_run_resumes_when_there_is_space": (
        "a real file system, two runs each of 6"
    ),
    "tests/end_to_end/test_resume.py::test_a_disk_that_takes_no_more_is_one_line_at_every_write": "two runs a write",
    "tests/end_to_end/test_resume.py::test_a_folder_that_is_gone_stops_the_run_and_is_not_made_again": "7 runs",
    "tests/end_to_end/test_resume.py::test_killed_with_workers_a_run_restarts_at_once": "six runs with workers",
    "tests/end_to_end/test_streaming.py::test_a_server_that_fails_gives_the_same_training": "four runs",
    "tests/end_to_end/test_streaming.py::test_a_server_that_lies_ends_the_training_with_one_line": "a run each",
    "tests/end_to_end/test_study.py": "whole studies, and a browser",
    "tests/end_to_end/test_training.py::test_a_run_saves_and_ends_when_its_launcher_is_asked_to": "a real launcher",
    "tests/end_to_end/test_training.py::test_killed_while_a_checkpoint_is_written_a_run_goes_on_as_if_nothing_was": (
        "two runs each of 13 moments"
    ),
    "tests/end_to_end/test_touching_cells.py": "a training",
    "tests/end_to_end/test_training.py::test_the_smallest_network_learns_to_see_discs": "a training",
    "tests/faults": "a run each of one or two faults of each kind, and its restart",
    "tests/fuzz": "45 changed files",
    "tests/jobs/test_exit_codes.py::test_the_cause_counts_and_not_what_it_did_to_the_other_process": "real launchers",
    "tests/unit/test_bioimageio.py::test_a_package_passes_their_test_and_gives_predicts_mask_at_any_size": "tests",
    "tests/unit/test_bioimageio.py::test_a_package_that_gives_something_else_is_not_written": "a package, tested",
    "tests/unit/test_bioimageio.py::test_the_command_writes_a_package_that_names_no_file_of_this_machine": "the same",
    "tests/unit/test_bioimageio.py::test_what_bioimageio_does_not_take_is_one_line_and_nothing_is_written": "the same",
    "tests/unit/test_cache.py::test_a_killed_process_leaves_nothing_that_looks_whole_and_nothing_in_the_way": (
        "killed at many moments"
    ),
    "tests/unit/test_compile.py::test_each_kind_of_layer_has_one_graph_at_each_level": "14 compilations",
    "tests/unit/test_compile.py::test_each_kind_of_layer_has_one_graph_in_every_encoder": "every encoder, compiled",
    "tests/unit/test_convert.py::test_every_real_mask_is_the_union_by_the_coco_api": "real images",
    "tests/unit/test_deterministic.py::test_every_encoder": "every encoder",
    "tests/unit/test_deterministic.py::test_every_layer_of_spatial_parallelism": "encoders, two levels",
    "tests/unit/test_frozen_norms.py::test_each_encoders_norms_are_frozen_or_there_are_none": "every encoder",
    "tests/unit/test_gpu_types.py::test_every_layer_of_every_encoder_gives_bf16": "every encoder",
    "tests/unit/test_hostile_shards.py::test_a_tar_of_very_many_members_takes_little_memory": "65,536 members",
    "tests/unit/test_kernel_limits.py::test_no_call_of_a_step_is_too_large": "steps of 68 to 270 Mpx in many tiles",
    "tests/unit/test_kernel_limits.py::test_norms_batches_and_strips": "steps of 270 Mpx in many tiles",
    "tests/unit/test_kernel_limits.py::test_the_bound_of_an_encoder_is_where_a_call_becomes_too_large": "encoders",
    "tests/unit/test_kernel_limits.py::test_the_usual_tiles_of_a_gpu": "a step of 68 Mpx in very many tiles",
    "tests/unit/test_kernel_limits.py::test_without_the_bound_calls_are_too_large": "steps of 68 and 135 Mpx",
    "tests/unit/test_loss_scale.py::test_a_restarted_run_ends_with_the_same_bits": "three runs each",
    "tests/unit/test_memory_estimator.py::test_memory_grows_evenly_with_the_batch_and_bf16_takes_less": (
        "counts many steps"
    ),
    "tests/unit/test_growth.py::test_the_blocks_of_the_guide_run": "four commands, one a prediction",
    "tests/unit/test_networks.py::test_predicted_masks_of_held_out_fields_score_what_the_card_says": "fields of 1 Mpx",
    "tests/unit/test_offload.py::test_the_bits_are_those_of_the_level_full": "every encoder",
    "tests/unit/test_optimizer_in_backward.py::test_a_run_and_a_resumed_one_have_the_bits_of_plain_steps": "runs",
    "tests/unit/test_planner.py::test_advice_never_offers_what_was_tried": "counts many steps",
    "tests/unit/test_planner.py::test_auto_takes_the_quickest_that_fits": "counts many steps",
    "tests/unit/test_planner.py::test_counted_is_what_a_process_grows_by": "a real step of full size",
    "tests/unit/test_planner.py::test_each_rung_needs_less_than_the_one_before": "counts many steps",
    "tests/unit/test_planner.py::test_host_memory_that_is_not_there_is_refused_in_one_line": "counts many steps",
    "tests/unit/test_planner.py::test_kept_activations_are_shared_by_rows": "native steps",
    "tests/unit/test_planner.py::test_no_attention_matrix_at_native_size": "native steps",
    "tests/unit/test_planner.py::test_the_largest_batch_and_size_are_what_counting_finds_there": "counts many steps",
    "tests/unit/test_planner.py::test_what_strips_need_is_counted_with_the_tiles_of_a_gpu": "native steps",
    "tests/unit/test_prediction_limits.py::test_no_call_of_a_prediction_is_too_large": "135 and 270 Mpx in many tiles",
    "tests/unit/test_quick_install.py::test_uv_looks_where_pip_or_uv_is_told_to": "runs pip for each",
    "tests/unit/test_recipe_benchmark.py::test_a_killed_run_of_smp_resumes_with_the_same_bits": "five runs",
    "tests/unit/test_recipe_benchmark.py::test_recipes_are_screened_and_compared_and_nothing_is_computed_twice": (
        "eight runs"
    ),
    "tests/unit/test_resume_losses.py": "three runs each of 26",
    "tests/unit/test_smp.py::test_logits_and_gradients_are_smps": "encoders of full size",
    "tests/unit/test_step_formulas.py::test_a_plan_that_is_known_is_printed_without_torch": "a new interpreter",
    "tests/unit/test_step_formulas.py::test_a_small_image_takes_at_most_one_count_a_level": "counts",
    "tests/unit/test_step_formulas.py::test_the_formula_is_exact": "three counts for each encoder",
    "tests/unit/test_step_formulas.py::test_the_formula_is_exact_for_each_level": "four counts each",
    "tests/unit/test_step_formulas.py::test_what_is_not_counted_is_close": "counts many steps",
    "tests/unit/test_step_formulas.py::test_what_is_refused_is_refused_before_anything_is_printed": "new interpreters",
    "tests/unit/test_synchronisation.py::test_a_step_reads_once_and_copies_nothing_but_what_was_drawn": "every encoder",
    "tests/unit/test_synchronisation.py::test_so_it_does_in_each_precision_with_each_norm_and_loss": (
        "three levels each"
    ),
    "tests/unit/test_synchronisation.py::test_so_it_does_where_processes_share_an_image": "encoders, each six steps",
    "tests/unit/test_tile_size.py::test_a_gpus_tiles_need_far_fewer_launches_than_a_cpus": "native steps",
    "tests/unit/test_tile_size.py::test_the_studys_network_fits_at_native_size": "native steps",
    "tests/unit/test_timm_models.py::test_a_step_lowers_the_loss_and_the_state_comes_back": "every encoder",
    "tests/unit/test_timm_models.py::test_each_encoder_at_the_articles_size_and_an_odd_one": "every encoder",
    "tests/unit/test_timm_models.py::test_maps_are_those_of_timms_feature_extraction": "every encoder of full size",
    "tests/unit/test_timm_models.py::test_recomputation_changes_nothing": "encoders, two levels",
    "tests/unit/test_trackers.py::test_tensorboard_reads_back_what_was_logged": "TensorBoard's imports",
    "tests/unit/test_weights.py::test_imagenet_weights_without_a_network_are_one_line_without_minutes_of_retries": (
        "it waits for a hub"
    ),
    "tests/unit/test_large_images.py::test_of_a_convolutional_network_only_some_strips_are_under_way": "48 strips",
    "tests/unit/test_large_images.py::test_memory_stays_within_the_limit_in_strips": "a large image, twice",
    "tests/unit/test_large_images.py::test_strips_give_what_the_whole_image_gives_in_fp64": "four networks, twice each",
    "tests/unit/test_verify.py::test_two_processes_verify_bits_and_one_verifies_their_losses": "runs of processes",
    "tests/unit/test_worker_pool.py::test_ending_a_pool_leaves_no_process_and_no_open_file": "looks at all objects",
    "tests/unit/test_worker_pool.py::test_runs_that_share_a_pool_leave_nothing_in_it": "looks at all objects",
}
"""Test, file or folder -> what takes the time."""

NARROWEST = ("mit_tiny", "mobilenet_v2")
WHOLE_IN_SLOW = {
    "tests/chaos/test_chaos.py::test_six_faults_of_six_kinds_leave_a_run_as_if_nothing_had_happened": (),
    "tests/distributed/test_accumulation.py::test_a_restarted_run_ends_with_the_same_bits": ("DDP",),
    "tests/distributed/test_accumulation.py::test_micro_batches_on_two_processes_equal_the_batch_of_one": (
        "FSDP2",
        "spatial parallel",
    ),
    "tests/distributed/test_every_encoder.py::test_fsdp2_shards_every_weight_and_gathers_it_block_by_block": NARROWEST,
    "tests/distributed/test_every_encoder.py::test_two_processes_with_unequal_shares_equal_one": NARROWEST,
    "tests/distributed/test_fused_adam.py::test_a_run_moves_between_the_optimizers_of_gpus_and_cpus": (
        "DDP-contiguous",
    ),
    "tests/distributed/test_fused_adam.py::test_fp16_overflow_is_known_where_the_optimizer_skips_steps_itself": (
        *("1", "adam", "sgd"),
    ),
    "tests/distributed/test_resume_bits.py::test_a_restarted_run_ends_with_the_same_bits": (
        *("DDP-2-full", "FSDP2-2-"),
    ),
    "tests/distributed/test_saving_processes.py::test_all_train_on_while_one_writes": ("DDP",),
    "tests/distributed/test_spatial_parallel.py::test_bands_equal_whole_images_in_fp64": (
        *("mit_tiny-batch-full", "mit_tiny-group-none", "resnet50-batch-none", "vgg19-batch-none"),
    ),
    "tests/distributed/test_training_recipes.py::test_two_processes_equal_one_and_their_checkpoints_are_everybody_s": (
        *("DDP-", "FSDP2-adamw", "strips-adam,", "strips-frozen, sgd"),
    ),
    "tests/distributed/test_fsdp.py::test_parts_of_two_checkpoints_are_not_taken_for_one": (),
    "tests/end_to_end/test_bench_gpu.py::test_a_kernel_that_overflows_fails": (),
    "tests/end_to_end/test_bench_gpu.py::test_the_rehearsal_runs_every_check": (
        *("preflight", "gradients", "attention", "spatial", "killed"),
    ),
    "tests/end_to_end/test_bench_predict.py::test_the_baseline_is_measured_beside_ours": (),
    "tests/end_to_end/test_endings.py::test_a_stop_between_micro_batches_is_a_stop_after_the_step": "five runs",
    "tests/end_to_end/test_endings.py::test_steps_that_overflow_fp16_are_repeated_and_a_restart_changes_no_bit": ("1",),
    "tests/faults/test_faults.py::test_a_fault_ends_as_promised_and_the_same_command_resumes": (
        *(
            "SIGKILL between",
            "SIGKILL to rank 1",
            "SIGHUP in validation",
            "ENOSPC at the row",
        ),
        *("deeply nested", "store out"),
    ),
    "tests/unit/test_compile.py::test_each_kind_of_layer_has_one_graph_at_each_level": ("mit_tiny-full-1",),
    "tests/unit/test_compile.py::test_each_kind_of_layer_has_one_graph_in_every_encoder": (*("mit_tiny", "resnet50"),),
    "tests/unit/test_deterministic.py::test_every_encoder": ("mit_tiny", "mobilenet_v2", "resnet50", "vgg19"),
    "tests/unit/test_hostile_shards.py::test_a_tar_of_very_many_members_takes_little_memory": (),
    "tests/unit/test_kernel_limits.py::test_no_call_of_a_step_is_too_large": ("68 Mpx-full",),
    "tests/unit/test_kernel_limits.py::test_norms_batches_and_strips": (),
    "tests/unit/test_kernel_limits.py::test_the_bound_of_an_encoder_is_where_a_call_becomes_too_large": (
        "resnet50",
        "mobilenet_v2",
    ),
    "tests/unit/test_kernel_limits.py::test_without_the_bound_calls_are_too_large": ("none-68",),
    "tests/unit/test_loss_scale.py::test_a_restarted_run_ends_with_the_same_bits": ("1",),
    "tests/unit/test_micro_batches.py::test_auto_takes_the_level_that_a_micro_batch_fits": (),
    "tests/unit/test_micro_batches.py::test_the_planner_foretells_what_is_counted": ("none-2", "full-2"),
    "tests/unit/test_model.py::test_the_encoder_is_transformers_own_to_the_last_bit": (
        *("True-mit_b0", "False-mit_b0", "True-mit_tiny", "False-mit_tiny"),
    ),
    "tests/unit/test_planner.py::test_advice_never_offers_what_was_tried": (),
    "tests/unit/test_planner.py::test_each_rung_needs_less_than_the_one_before": (),
    "tests/unit/test_planner.py::test_counted_is_what_a_process_grows_by": (),
    "tests/unit/test_planner.py::test_host_memory_that_is_not_there_is_refused_in_one_line": "counts many steps",
    "tests/unit/test_planner.py::test_kept_activations_are_shared_by_rows": ("2-",),
    "tests/unit/test_planner.py::test_no_attention_matrix_at_native_size": (),
    "tests/unit/test_planner.py::test_the_largest_batch_and_size_are_what_counting_finds_there": (),
    "tests/unit/test_step_formulas.py::test_a_plan_that_is_known_is_printed_without_torch": (),
    "tests/unit/test_recipe_benchmark.py::test_recipes_are_screened_and_compared_and_nothing_is_computed_twice": (),
    "tests/unit/test_step_formulas.py::test_moments_that_are_never_the_peak_are_left_out": (),
    "tests/unit/test_step_formulas.py::test_the_formula_is_exact": ("mit_b0", "resnet50"),
    "tests/unit/test_step_formulas.py::test_the_formula_is_exact_for_each_level": (),
    "tests/unit/test_step_formulas.py::test_what_is_not_counted_is_close": ("resnet50-none", "mit_tiny-selective"),
    "tests/unit/test_synchronisation.py::test_so_it_does_where_processes_share_an_image": (
        *("mit_tiny-full-batch", "mit_b0-selective-group", "resnet50-full-group", "vgg19-none-group"),
    ),
    "tests/unit/test_synchronisation.py::test_a_step_reads_once_and_copies_nothing_but_what_was_drawn": (
        *("mit_tiny", "mobilenet_v2", "resnet50", "xception", "efficientnet_lite0"),
    ),
    "tests/unit/test_tile_size.py::test_the_studys_network_fits_at_native_size": (),
    "tests/unit/test_weights.py::test_imagenet_weights_without_a_network_are_one_line_without_minutes_of_retries": (),
    "tests/unit/test_tile_size.py::test_a_gpus_tiles_need_far_fewer_launches_than_a_cpus": (),
}
"""Test -> how the parameters begin that `make test-all` runs, too; with the others it is slow. A test is here whose
parameters take minutes together: narrow encoders and small sizes prove the code, `make test-slow` proves the rest."""

FIRST_IN_CI = {
    "tests/distributed/test_collectives.py::test_all_processes_communicate_in_the_same_order": 2,
    "tests/distributed/test_fsdp.py::test_three_steps_equal_the_plain_model_s": 1,
    "tests/distributed/test_fused_adam.py::test_fp16_overflow_is_known_where_the_optimizer_skips_steps_itself": 2,
    "tests/distributed/test_label_processes.py::test_every_engine_equals_a_plain_loop_at_every_level": 1,
    "tests/distributed/test_launches.py::test_launchers_without_settings_train_one_model": 1,
    "tests/distributed/test_processes.py::test_training_on_several_processes_equals_one": 2,
    "tests/distributed/test_reproducible.py::test_bits_do_not_depend_on_the_processes": 1,
    "tests/distributed/test_spatial_parallel_runs.py::test_training_in_rows_equals_one_process": 1,
    "tests/distributed/test_training_recipes.py::test_two_processes_equal_one_and_their_checkpoints_are_everybody_s": 5,
    "tests/end_to_end/test_bench_gpu.py::test_the_rehearsal_runs_every_check": 3,
    "tests/end_to_end/test_endings.py::test_what_only_has_the_name_of_a_checkpoint_stops_no_run": 5,
    "tests/end_to_end/test_launch_program.py::test_the_program_trains_under_a_launcher_as_without": 1,
    "tests/end_to_end/test_resume.py::test_a_disk_that_takes_no_more_is_one_line_at_every_write": 7,
    "tests/faults/test_faults.py::test_a_fault_ends_as_promised_and_the_same_command_resumes": 4,
    "tests/unit/test_compile.py::test_each_kind_of_layer_has_one_graph_in_every_encoder": 1,
    "tests/unit/test_convert.py::test_every_real_mask_is_the_union_by_the_coco_api": 1,
    "tests/unit/test_deterministic.py::test_every_layer_of_spatial_parallelism": 2,
    "tests/unit/test_extras.py::test_pip_takes_the_command_where_no_index_has_the_project": 3,
    "tests/unit/test_freezing.py::test_only_the_decoder_gets_gradients_and_the_encoder_stays_as_it_is": 6,
    "tests/unit/test_frozen_norms.py::test_each_encoders_norms_are_frozen_or_there_are_none": 6,
    "tests/unit/test_gpu_types.py::test_every_layer_of_every_encoder_gives_bf16": 6,
    "tests/unit/test_large_images.py::test_strips_give_what_the_whole_image_gives_in_fp64": 4,
    "tests/unit/test_micro_batches.py::test_the_planner_foretells_what_is_counted": 1,
    "tests/unit/test_prediction_limits.py::test_no_call_of_a_prediction_is_too_large": 1,
    "tests/unit/test_resume_losses.py::test_every_loss": 4,
    "tests/unit/test_resume_losses.py::test_every_optimizer_with_every_schedule": 4,
    "tests/unit/test_smp.py::test_logits_and_gradients_are_smps": 2,
    "tests/unit/test_step_formulas.py::test_the_formula_is_exact": 1,
    "tests/unit/test_synchronisation.py::test_norms_over_processes_do_not_read_from_the_gpu": 3,
    "tests/unit/test_timm_models.py::test_a_step_lowers_the_loss_and_the_state_comes_back": 6,
    "tests/unit/test_timm_models.py::test_each_encoder_at_the_articles_size_and_an_odd_one": 5,
    "tests/unit/test_timm_models.py::test_recomputation_changes_nothing": 5,
}
"""Test -> of how many of its parameters, the first ones, `make test-all` makes do; with the others it is slow. They are
of one kind, and each is proved by `make test-slow`."""

LONGEST_FILES = (
    "tests/end_to_end/test_bench_gpu.py",
    "tests/unit/test_step_formulas.py",
    "tests/unit/test_kernel_limits.py",
    "tests/unit/test_compile.py",
    "tests/distributed/test_every_encoder.py",
    "tests/unit/test_planner.py",
    "tests/distributed/test_resume_bits.py",
    "tests/unit/test_synchronisation.py",
    "tests/chaos/test_chaos.py",
    "tests/unit/test_timm_models.py",
    "tests/distributed/test_processes.py",
    "tests/distributed/test_fused_adam.py",
    "tests/distributed/test_fsdp.py",
    "tests/distributed/test_spatial_parallel.py",
    "tests/end_to_end/test_endings.py",
    "tests/distributed/test_spatial_parallel_runs.py",
    "tests/distributed/test_resume_processes.py",
    "tests/distributed/test_joining.py",
    "tests/distributed/test_machines.py",
    "tests/unit/test_worker_pool.py",
    "tests/unit/test_tile_size.py",
    "tests/end_to_end/test_training.py",
    "tests/unit/test_object_store.py",
    "tests/fuzz/test_fuzz.py",
    "tests/end_to_end/test_resume.py",
    "tests/unit/test_convert.py",
    "tests/unit/test_remote_run.py",
    "tests/unit/test_transfer.py",
    "tests/unit/test_download.py",
    "tests/distributed/test_collectives.py",
    "tests/distributed/test_any_timm_processes.py",
    "tests/end_to_end/test_study.py",
    "tests/unit/test_deterministic.py",
)
"""Files of more than about half a minute in `make test-all`, the longest first. A file's tests stay on one core: what
is begun last should be short, or the other cores wait for it."""


def begins_at(test: str) -> int:
    """The place of a test's file in the order in which files are begun; those that are not listed share the last."""
    file = test.partition("::")[0]
    return LONGEST_FILES.index(file) if file in LONGEST_FILES else len(LONGEST_FILES)


def is_long(test: str) -> bool:
    """Whether a test's id, as pytest prints it, is of a name in `LONG`."""
    return any(test == name or test.startswith((f"{name}::", f"{name}/", f"{name}[")) for name in LONG)


def is_slow(test: str) -> bool:
    """Whether `WHOLE_IN_SLOW` leaves a test's id, as pytest prints it, to `make test-slow`."""
    name, _, parameters = test.partition("[")
    return name in WHOLE_IN_SLOW and not parameters.startswith(WHOLE_IN_SLOW[name])
