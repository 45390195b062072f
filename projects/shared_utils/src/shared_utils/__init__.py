"""What both services share: settings base, logging, errors, units, GPU facts."""
