//go:build linux

package server

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exit statuses of the guest and of its worker.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// Main is `berth guest`: it serves on the standard streams until standard input
// ends or SIGTERM arrives, and returns the exit status. When it runs as root,
// everything it starts runs as -uid and -gid; otherwise all keep the user they
// have.
func Main(args []string) int {
	flags := flag.NewFlagSet("guest", flag.ContinueOnError)
	workdir := flags.String("workdir", "/workspace", "folder that commands start in")
	uid := flags.Int("uid", 1000, "user id of commands, when the guest is root")
	gid := flags.Int("gid", 1000, "group id of commands, when the guest is root")
	envFile := flags.String("env-file", "", "JSON object with more environment for commands")
	var shares Shares
	flags.Var(&shares, "share", "folder that file tools may reach, as rw:PATH or ro:PATH; may be repeated")
	if flags.Parse(args) != nil || flags.NArg() > 0 {
		return exitUsage
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	cfg := Config{Workdir: *workdir, UID: -1, GID: -1, Shares: shares, Log: log, reaper: newReaper()}
	if os.Getuid() == 0 {
		cfg.UID, cfg.GID = *uid, *gid
	}
	if err := prepare(&cfg, *envFile); err != nil {
		log.Error("guest cannot start", "err", err)
		return exitFailed
	}
	return run(cfg)
}

// prepare reads the environment file and sees to the workdir.
func prepare(cfg *Config, envFile string) error {
	if envFile != "" {
		b, err := os.ReadFile(envFile)
		if err != nil {
			return fmt.Errorf("read environment: %w", err)
		}
		if err := json.Unmarshal(b, &cfg.Env); err != nil {
			return fmt.Errorf("read environment %s: %w", envFile, err)
		}
	}
	if err := os.MkdirAll(cfg.Workdir, 0o755); err != nil {
		return fmt.Errorf("make workdir: %w", err)
	}
	if cfg.UID >= 0 {
		if err := os.Lchown(cfg.Workdir, cfg.UID, cfg.GID); err != nil {
			cfg.Log.Warn("workdir keeps its owner", "workdir", cfg.Workdir, "err", err)
		}
	}
	return nil
}

// mend gives the owner of the workdir its rights back. A command that took them
// away would otherwise take every later one with it, in the next sandbox too.
func mend(workdir string) {
	const owner = 0o700
	info, err := os.Lstat(workdir)
	if err != nil || !info.IsDir() || info.Mode().Perm()&owner == owner {
		return
	}
	_ = os.Chmod(workdir, info.Mode().Perm()|owner) // when it fails, the tools say what is wrong
}

// oneAtATime keeps this process from waking threads of its own: it passes on
// what others do, and inside gVisor the hand-over from one thread to another is
// what costs. Commands are processes of their own and use all cores.
func oneAtATime() { runtime.GOMAXPROCS(1) }

func run(cfg Config) int {
	oneAtATime()
	in, errIn := stdio(0)
	out, errOut := stdio(1)
	if err := errors.Join(errIn, errOut); err != nil {
		cfg.Log.Error("guest cannot start", "err", err)
		return exitFailed
	}
	// Orphans come to the first process by themselves, and to any other one
	// that asks for them.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		cfg.Log.Warn("orphans are left alone", "err", err)
	}
	cfg.Launch = processWorker(cfg)
	s := New(cfg)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { cfg.reaper.run(stop) })

	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	served := make(chan error, 1)
	wg.Go(func() { served <- s.Serve(in, out) })
	code := exitOK
	select {
	case err := <-served:
		if err != nil {
			cfg.Log.Error("standard streams broke", "err", err)
			code = exitFailed
		}
	case <-term:
		_ = in.Close()
		if err := <-served; err != nil {
			cfg.Log.Debug("standard streams ended with us", "err", err)
		}
	}
	s.Close()
	close(stop)
	wg.Wait()
	return code
}

// WorkerMain is `berth guest worker`: it runs tools for the guest that started
// it, over its standard streams, until standard input ends.
func WorkerMain(args []string) int {
	flags := flag.NewFlagSet("guest worker", flag.ContinueOnError)
	workdir := flags.String("workdir", "/workspace", "folder that commands start in")
	uid := flags.Int("uid", -1, "user id to change to, when this is root")
	gid := flags.Int("gid", -1, "group id to change to, when this is root")
	var shares Shares
	flags.Var(&shares, "share", "folder that file tools may reach, as rw:PATH or ro:PATH; may be repeated")
	if flags.Parse(args) != nil || flags.NArg() > 0 {
		return exitUsage
	}
	if err := become(*uid, *gid); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	// The agent's commands run as the same user: keep them from reading this
	// process and its streams. Where that is not possible they can only fool
	// themselves.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	oneAtATime()
	unix.Umask(0o022)
	in, errIn := stdio(0)
	out, errOut := stdio(1)
	err := errors.Join(errIn, errOut)
	if err == nil {
		err = newToolbox(*workdir, shares).serve(in, out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	return exitOK
}

// become changes the user of this process for good, and with it what it may do.
// The kernel closes its memory to that user in the same step.
func become(uid, gid int) error {
	if uid < 0 {
		return nil
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(gid, gid, gid), syscall.Setresuid(uid, uid, uid)); err != nil {
		return fmt.Errorf("become user %d: %w", uid, err)
	}
	return nil
}
