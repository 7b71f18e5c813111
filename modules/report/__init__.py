"""Tables, comparisons and figures from the files of runs."""
