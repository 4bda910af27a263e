"""What a job is: the program an allocation runs, its stopwatch, and its data (grids, prompts)."""
