"""Which of the ways to make a run fit are worth their time, worked out without a GPU."""
