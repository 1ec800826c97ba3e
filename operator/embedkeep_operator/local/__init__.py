"""Runs a cache on one machine: `embedkeep up`, `embedkeep status` and the demo.

From the outside in: `up`, `status`, `demo` are commands; `runner` is what they and tests call
(`Local`); `prepare` writes configs, with `ports` and `certificate`; `programs` says what is run;
`supervisor` keeps it running, with `spawning`, `backoff`, `probes`, `endings`, `output` (what it
prints) and `watchdog`, which outlives a killed `up`; `forming` keeps several Valkeys one cluster;
`predicting` runs the predictor by its schedule;
`state` is what lies on disk; `observe` and `view` read and show what the processes count; `replay`
asks the demo's questions.

What a field of the resource means is decided in `embedkeep_operator.render`, not here. How others
find a running cache stands in `embedkeep.runs`. Only the command line, benchmarks and tests call
this package.
"""
