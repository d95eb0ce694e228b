package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/alecthomas/kong"
)

// Exit codes, the same in every command.
const (
	exitDone    = 0
	exitFailure = 1
	exitUsage   = 2
	exitCheck   = 3 // check or gate failed
)

const description = `Turns Jira, Confluence and Jira Service Management event records into training data:
drops what its organisation has not agreed to, removes who is in it, and commits the rest as batches.

Try it on the fixtures that come with the source:
  deidentify replay fixtures/events --tenants fixtures/tenants.jsonl --out out

Exit codes: 0 done, 1 failure, 2 usage, 3 check or gate failed.`

type cli struct {
	Replay replayCmd `cmd:"" help:"Carry files through the whole line, embedded broker included, and print a summary."`
	Run    runCmd    `cmd:"" help:"Work as a member of a consumer group until stopped: the stream worker."`
	Scrub  scrubCmd  `cmd:"" help:"Scrub text from stdin to stdout, or print its spans."`
	Gate   gateCmd   `cmd:"" help:"Say what is collected of a tenant, and why. Exits 3 if nothing is."`
	Check  checkCmd  `cmd:"" help:"Verify a data set: chain, hashes, row counts, double entry. Exits 3 on any fault."`
	Show   showCmd   `cmd:"" help:"Show what a data set holds beside its documents."`
}

// session is what a command runs with.
type session struct {
	ctx    context.Context
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	now    func() time.Time
}

// These make the exit code 3: what was checked has a fault, or the gate is shut.
var (
	errCheck = errors.New("the check found faults")
	errGate  = errors.New("nothing of this tenant is collected: the gate is shut")
)

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return runAt(&session{ctx, stdin, stdout, stderr, time.Now}, args)
}

func runAt(s *session, args []string) int {
	var c cli
	code := -1
	p, err := kong.New(&c, kong.Name("deidentify"), kong.Description(description),
		kong.Writers(s.stdout, s.stderr), kong.Exit(func(n int) { code = n }), kong.Bind(s),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}))
	if err != nil {
		fmt.Fprintln(s.stderr, "deidentify:", err)
		return exitFailure
	}
	k, err := p.Parse(args)
	if code >= 0 { // --help has been printed
		return code
	}
	if err != nil {
		fmt.Fprintf(s.stderr, "deidentify: %v\ntry: deidentify --help\n", err)
		return exitUsage
	}
	switch err := k.Run(s); {
	case err == nil:
		return exitDone
	case errors.Is(err, errCheck), errors.Is(err, errGate):
		fmt.Fprintln(s.stderr, "deidentify:", err)
		return exitCheck
	case errors.As(err, new(usageError)):
		fmt.Fprintf(s.stderr, "deidentify: %v\ntry: deidentify %s --help\n", err, k.Command())
		return exitUsage
	case errors.Is(err, context.Canceled) && s.ctx.Err() != nil:
		fmt.Fprintln(s.stderr, "deidentify: stopped; what was committed stays, the rest is read again next time")
		return exitFailure
	default:
		fmt.Fprintln(s.stderr, "deidentify:", err)
		return exitFailure
	}
}

// usageError is a combination of flags that makes no sense.
type usageError string

func (e usageError) Error() string { return string(e) }
