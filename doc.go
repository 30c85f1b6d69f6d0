// Package berth is the root of the module and holds no code: the program is in
// cmd/berth, its rooms are in internal, and ARCHITECTURE.md is the map. The tests
// here hold that map against the code.
package berth
