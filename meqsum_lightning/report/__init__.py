"""Tables, plots, statistics and the page made from finished runs; nothing here trains."""
