// Package conformance holds workers of Claude Managed Agents to the contract of
// self-hosted environments. A case is data: what the scripted agent does, what
// goes wrong at the platform meanwhile, and what must hold in the end. The judge
// looks at the platform's side alone (its event log, its request log, the
// results that were sent to it), so it can judge any worker, whatever it is
// written in.
//
// A subject is a command that serves one environment; it is told where by
// ANTHROPIC_BASE_URL, ANTHROPIC_ENVIRONMENT_ID and ANTHROPIC_ENVIRONMENT_KEY. That
// a command ran once is proved by what it leaves behind: each one appends to a
// file that a later call reads back.
//
// cases/ holds the table, case.go reads it, run.go deals it out to workers,
// play.go plays one case, judge.go says what did not hold, mix.go makes cases
// with random faults, report.go makes the matrix.
package conformance
