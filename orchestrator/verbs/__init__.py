"""The verbs: what each command of `orch` does, and what they show."""
