"""From a source's files to batches: interactions -> splits and candidates -> prompts -> tokens -> Grain."""
