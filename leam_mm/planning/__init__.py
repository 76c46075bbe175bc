"""Plans of training runs: operations, time, energy, cost, memory and data, with the source of each number."""
