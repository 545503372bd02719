"""Will it fit, and what will it cost: a run's programs measured without the machine that would run them."""
