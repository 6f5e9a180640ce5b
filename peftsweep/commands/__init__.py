"""The named commands, one module each with `run(arguments) -> exit code`, imported when it is asked for.

A module imports nothing slow before it knows that its words are right: `--help` and a typo answer at once.
"""

# Name -> (module, what it does, for `--help`). A new command is one file and one row.
COMMANDS = {
    "methods": ("list_methods", "list them: capacity, search space, capabilities"),
    "preview": ("preview_data", "show rows as a model will see them: splits, template, what is trained on"),
    "plan": ("plan_memory", "will it fit, without GPU or weights"),
    "report": ("write_report", "compare what was run"),
    "recommend": ("recommend_method", "which one, under limits"),
    "ui": ("open_ui", "open MLflow"),
    "worker": ("join_sweep", "join a sweep"),
    "retry": ("retry_trials", "let a sweep's failed trials be run again"),
    "doctor": ("check_machine", "look whether jobs can run here, and how well"),
    "evaluate": ("evaluate_job", "score a trained job again: after a failure, or by other questions"),
    "import": ("import_results", "log finished jobs to MLflow, or read the PEFT library's benchmark"),
    "export": ("export_weights", "take a job's adapter out, merged or as LoRA"),
}


def commands_help() -> str:
    """A line for each command."""
    return "\n".join(f"  {name:<10} {line}" for name, (_, line) in COMMANDS.items())
