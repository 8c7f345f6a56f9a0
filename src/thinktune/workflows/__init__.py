"""Several verbs in a row: run, sweep; and the care of a machine: doctor, clean."""
