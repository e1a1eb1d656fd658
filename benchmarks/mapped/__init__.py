"""Rows of memory maps, shuffled: what language models and models of tables read.

Two commands share this: `benchmarks.tokens` and `benchmarks.tabular`. Each writes a file, maps it, and has all
contestants load rows of it in a random order:

- `sources`: what is in the files;
- `datasets`: the ways to read rows by index;
- `contestants`: which loader reads in which of these ways;
- `race`: their turns, and what comes of them.
"""
