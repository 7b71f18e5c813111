"""The second tournament: its registration and runs, its rule, what theory says of its schedules, its pictures."""
