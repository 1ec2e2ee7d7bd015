"""The grid: what to run, and how: configs, plan, data, training, and the folders and tables that this leaves."""
