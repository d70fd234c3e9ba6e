"""Training: `setup` (from a config to data, method, devices), `plan` (steps), `step` (one jitted step), `loop` (the one loop),
`state`, `optim`, `schedules`, `checkpoint`, `log`, `performance`, `start` (first parameters), `records` (what a run leaves)."""
