"""Benchmarks for asv: fast, paper, dense and peers as parameters of one benchmark; times, peak memory, errors."""
