package batch

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// This file checks the commit chain as a model: every state is visited that two
// writers, Sweep, retention, crashes and a network that loses and delays
// replies can bring about. It finds interleavings that no number of kills does,
// and says nothing about power failures, which the tests of disk are for.
//
// The writers are both assigned the partition for ever, which is the worst that
// a rebalance or a zombie can do. A step of the model is one call of the code
// that others can see the effect of; its label names the function.
//
// In every state: no offset below the tip is in two commits or in none, every
// file that a commit names is there, every offset of the chain has its one row,
// and so has an event that came twice. When nobody works and nothing is under
// way, every other file is named by an intent, or dead by its own name: another
// attempt has committed its start.

// protocols are the protocol of this package, and others that do one thing
// otherwise; most must be caught at it.
var protocols = []struct {
	name  string
	rules rules
	finds string // how what the check must find begins
}{
	{"this package", rules{}, ""},

	// A writer whose start is taken can not commit, but goes on to write. If
	// Sweep has removed its intent by then and it crashes before it has removed
	// its files itself, only a walk through the dataset finds them.
	{"this package, without files that only their names tell to be dead", rules{intentsAlone: true}, "orphan"},
	{"Sweep leaves the intent of a writer that may still run", rules{intentsAlone: true, keepsLive: true}, ""},

	{"the position is the group's offset, files count without a chain", rules{groupOffset: true}, "duplicate"},
	{"file names made from the start, overwritten while boundaries drift", rules{groupOffset: true, sameNames: true}, "lost"},
	{"the commit is made by stat, then rename", rules{renames: true}, "lost"},
	{"files that no commit names are collected by age", rules{collects: true}, "lost"},
	{"exists means foreign, though one's own reply was lost", rules{existsIsForeign: true}, "lost"},
	{"a create that failed in an unknown way is abandoned", rules{abandonsUnknown: true}, "lost"},
	{"the genesis commit is named by the log's start", rules{genesisByStart: true}, "fork"},
	{"abandon removes the intent before the files", rules{intentGoesFirst: true}, "orphan"},
	{"data is written before the intent", rules{dataFirst: true}, "orphan"},
	{"Sweep takes an intent of the tip for dead", rules{sweepsTip: true}, "lost"},
	{"Sweep does not compare the attempt of the commit", rules{sweepsOwn: true}, "lost"},
	{"a writer removes its intent before its commit", rules{intentGoesEarly: true}, "orphan"},
	{"the memory of repeats is not read from the chain", rules{forgets: true}, "duplicate"},
	{"the memory of repeats is not read again after a lost race", rules{keepsMemory: true}, "duplicate"},
}

// rules say what a protocol does otherwise than this package.
type rules struct {
	intentsAlone, keepsLive                     bool
	groupOffset, sameNames, renames, collects   bool
	existsIsForeign, abandonsUnknown            bool
	genesisByStart                              bool
	dataFirst, intentGoesFirst, intentGoesEarly bool
	sweepsTip, sweepsOwn                        bool
	forgets, keepsMemory                        bool
}

// The bounds of the model.
const (
	modelRecords  = 3
	modelWriters  = 2
	modelStates   = 1_500_000
	modelOpen     = 2                            // attempts without a commit that may have left something at one time; how many there were has no bound
	modelAttempts = modelRecords + modelOpen + 2 // the rest is for traces, which do not merge what is alike

	// The records at these offsets have one event id. That the first is not the
	// chain's first lets a writer that lost a race know the id, or not, wrongly.
	repeated, repeat = 1, 2
)

// modelState is everything that lasts, and where everybody is. The zero state
// is an empty dataset.
type modelState struct {
	commits  [modelRecords]int8 // by the number in their names: the attempt, or 0
	attempts [1 + modelAttempts]modelAttempt
	writers  [modelWriters]modelWriter
	sweep    int8 // the dead attempt whose files Sweep, whoever runs it, has removed, and whose intent comes next; or 0
	logStart int8 // of the topic; retention moves it from 0 to 1
	group    int8 // the group's offset, for protocols that believe it
}

// modelAttempt is what lies in the dataset of one attempt, or is on its way.
type modelAttempt struct {
	start, end, extends int8
	rows                uint8 // offsets that have a row in the file, as bits
	intent              intentState
	file                bool // one stands for all files of the attempt
	underway            bool // a create whose sender has stopped waiting, and which may be applied yet
}

type intentState uint8

const (
	noIntent intentState = iota
	halfIntent
	wholeIntent
)

type modelWriter struct {
	at      modelStep
	start   int8 // of the batch
	genesis bool
	knows   bool // the memory holds the repeated event id
	attempt int8
}

// modelStep is what a writer does next.
type modelStep uint8

const (
	opening    modelStep = iota // Store.Writer: tip
	remembers                   // Store.Writer: remember
	gathering                   // Add
	intending                   // intend: the first half of the file
	intending2                  // intend: the rest
	writing                     // writeFiles: storage.write
	reviewing                   // review, create
	creating                    // create, again after a lost reply
	renaming                    // of the protocol that renames
	committed                   // the commit stands: remove the own intent
	redoing                     // abandon for a redo: the files
	redoing2                    // abandon for a redo: the intent; attempt
	losing                      // abandon: the files
	losing2                     // abandon: the intent
)

// move is a step that was taken. Its text is made only for a trace.
type move struct {
	who     string
	what    string
	attempt int8
}

type model struct {
	rules
	open      int  // modelOpen, or more for a trace
	retention bool // the log may lose its first record
}

// tip returns the end of the last commit, as Store.tip does, or 0.
func (s *modelState) tip() int8 {
	for _, a := range slices.Backward(s.commits[:]) {
		if a != 0 {
			return s.attempts[a].end
		}
	}
	return 0
}

// seen reports whether the chain's files hold the repeated event id, which is
// what remember reads.
func (s *modelState) seen() bool {
	for _, a := range s.commits {
		if a != 0 && s.attempts[a].rows&(1<<repeated|1<<repeat) != 0 {
			return true
		}
	}
	return false
}

// forget frees the attempts of which nothing is left.
func (s *modelState) forget() {
	for i := range s.attempts {
		a, id := &s.attempts[i], int8(i)
		held := a.intent != noIntent || a.file || a.underway || s.sweep == id || slices.Contains(s.commits[:], id)
		for _, w := range s.writers {
			held = held || w.attempt == id
		}
		if !held {
			*a = modelAttempt{}
		}
	}
}

// name returns an attempt that is free, or 0 at the model's bound.
func (m *model) name(s *modelState) (free int8) {
	open := 0
	for id := int8(modelAttempts); id > 0; id-- {
		switch {
		case s.attempts[id] == modelAttempt{}:
			free = id
		case s.commits[s.attempts[id].extends] != id:
			open++
		}
	}
	if open >= m.open {
		return 0
	}
	return free
}

var writerNames = [modelWriters]string{"A", "B"}

// next yields every state that can follow s.
func (m *model) next(s *modelState, yield func(modelState, move)) {
	for i := range s.writers {
		m.write(s, i, func(n modelState, what string) {
			a := s.writers[i].attempt
			if a == 0 {
				a = n.writers[i].attempt
			}
			n.forget()
			yield(n, move{writerNames[i], what, a})
		})
	}
	m.sweeping(s, func(n modelState, what string, a int8) {
		n.forget()
		yield(n, move{"Sweep", what, a})
	})
	for i := range s.attempts {
		if s.attempts[i].underway {
			n := *s
			n.attempts[i].underway = false
			n.apply(int8(i))
			n.forget()
			yield(n, move{"network", "delivers a late create", int8(i)})
		}
	}
	if m.retention && s.logStart == 0 {
		n := *s
		n.logStart = 1
		yield(n, move{"broker", "retention removes offset 0", 0})
	}
}

// apply is storage.create where the storage is; it reports whether the name
// was free.
func (s *modelState) apply(attempt int8) bool {
	at := &s.commits[s.attempts[attempt].extends]
	if *at != 0 {
		return false
	}
	*at = attempt
	return true
}

// write yields what writer i can do.
func (m *model) write(s *modelState, i int, yield func(modelState, string)) {
	n := *s // each case changes it and yields it
	w := &n.writers[i]
	a := &n.attempts[w.attempt]
	if w.at != opening {
		crashed := n
		crashed.writers[i] = modelWriter{}
		yield(crashed, "crashes")
	}
	switch w.at {
	case opening:
		w.start = s.tip()
		if m.groupOffset {
			w.start = s.group
		}
		if w.genesis = w.start == 0; w.genesis {
			w.start = s.logStart // StartAt
		}
		w.at = remembers
		yield(n, "Store.Writer: tip")
	case remembers:
		// The chain may have grown since tip was read, and is then remembered
		// beyond it.
		w.knows = w.knows || !m.forgets && s.seen()
		w.at = gathering
		yield(n, "Store.Writer: remember")
	case gathering:
		m.gather(n, i, yield)
	case intending:
		if m.dataFirst || m.groupOffset {
			m.put(&n, w.attempt)
			w.at = writing
			yield(n, "writes data")
			return
		}
		a.intent = halfIntent
		w.at = intending2
		yield(n, "intend: half of the file")
	case intending2:
		// If a Sweep has removed the half, the rest goes to a file without a
		// name, and nothing tells the writer.
		if a.intent == halfIntent {
			a.intent = wholeIntent
		}
		w.at = writing
		yield(n, "intend: the rest")
	case writing:
		switch {
		case m.groupOffset:
			n.group = a.end
			*w = modelWriter{at: gathering, start: a.end}
			yield(n, "commits the group's offset")
		case m.dataFirst:
			a.intent = wholeIntent
			w.at = reviewing
			yield(n, "intend")
		default:
			failed := n
			failed.writers[i].at = losing
			yield(failed, "writeFiles: fails")
			m.put(&n, w.attempt)
			w.at = reviewing
			yield(n, "writeFiles")
		}
	case reviewing:
		redo := n
		redo.writers[i].at = redoing
		yield(redo, "review: a record leaves")
		if m.intentGoesEarly {
			a.intent = noIntent
			w.at = creating
			yield(n, "removes its intent")
			return
		}
		m.create(n, i, yield)
	case creating:
		m.create(n, i, yield)
	case renaming:
		n.commits[a.extends] = w.attempt
		w.at = committed
		yield(n, "renames its commit")
	case committed:
		*w = modelWriter{at: gathering, start: a.end, knows: w.knows}
		yield(n, "remove its intent: fails, for Sweep to do")
		a.intent = noIntent
		yield(n, "remove its intent")
	case redoing, losing:
		m.abandonFirst(a)
		w.at++
		yield(n, "abandon: the files")
	case redoing2:
		m.abandonThen(a)
		old := *a
		if w.attempt = m.name(&n); w.attempt != 0 {
			n.attempts[w.attempt] = modelAttempt{start: old.start, end: old.end, extends: old.extends, rows: old.rows}
			w.at = intending
			yield(n, "abandon: the intent; attempt")
		}
	case losing2:
		m.abandonThen(a)
		if m.keepsMemory && s.commits[a.extends] != 0 {
			*w = modelWriter{at: gathering, start: s.tip(), genesis: s.tip() == 0, knows: w.knows}
		} else {
			*w = modelWriter{}
		}
		yield(n, "abandon: the intent")
	}
}

// gather yields the batches that writer i may make: Add for each record, until
// some limit ends the batch.
func (m *model) gather(s modelState, i int, yield func(modelState, string)) {
	w := s.writers[i]
	if w.start < s.logStart {
		s.writers[i] = modelWriter{}
		yield(s, "the offset is out of range: opens again")
		return
	}
	w.attempt = m.name(&s)
	if w.attempt == 0 {
		return
	}
	a := modelAttempt{start: w.start, extends: w.start}
	if w.genesis && !m.genesisByStart {
		a.extends = 0
	}
	w.at, w.start, w.genesis = intending, 0, false // which the attempt has from here on
	for o := a.start; o < modelRecords; o++ {
		again := o == repeated || o == repeat
		if !again || !w.knows {
			a.rows |= 1 << o
		}
		w.knows = w.knows || again
		a.end = o + 1
		n := s
		n.writers[i], n.attempts[w.attempt] = w, a
		yield(n, "Add")
	}
}

// put writes the attempt's file.
func (m *model) put(s *modelState, attempt int8) {
	if m.sameNames {
		for i := range s.attempts {
			if s.attempts[i].start == s.attempts[attempt].start {
				s.attempts[i].file = false
			}
		}
	}
	s.attempts[attempt].file = true
}

// create is Store.create with claim and what Writer.commit makes of it.
func (m *model) create(s modelState, i int, yield func(modelState, string)) {
	n := s
	w := &n.writers[i]
	attempt := w.attempt
	extends := s.attempts[attempt].extends

	if m.renames {
		w.at = losing
		if s.commits[extends] == 0 {
			w.at = renaming
		}
		yield(n, "stat")
		return
	}

	switch free := n.apply(attempt); {
	case free:
		w.at = committed
		yield(n, "create")
		w.at = creating
		yield(n, "create: applied, the reply is lost")
	case s.commits[extends] == attempt && !m.existsIsForeign:
		w.at = committed
		yield(n, "create: exists, and is its own")
	default:
		w.at = losing
		yield(n, "create: exists")
	}

	n = s
	// The request takes longer than its sender waits: claim finds nothing under
	// the name, and Writer.commit leaves everything as it is. Or the sender
	// crashes, or tries again, which is the same request to the storage.
	if !n.attempts[attempt].underway {
		n.attempts[attempt].underway = true
		w.at = creating
		yield(n, "create: no reply yet")
	} else if m.abandonsUnknown {
		w.at = losing
		yield(n, "create: fails; gives up")
	} else {
		*w = modelWriter{}
		yield(n, "create: fails; gives up")
	}
}

// abandonFirst and abandonThen are the two halves of Store.abandon.
func (m *model) abandonFirst(a *modelAttempt) {
	if m.intentGoesFirst {
		a.intent = noIntent
	} else {
		a.file = false
	}
}

func (m *model) abandonThen(a *modelAttempt) {
	if m.intentGoesFirst {
		a.file = false
	} else {
		a.intent = noIntent
	}
}

// sweeping yields what Sweep can do. It may crash anywhere, which leaves no
// more than its being between two intents does.
func (m *model) sweeping(s *modelState, yield func(modelState, string, int8)) {
	if id := s.sweep; id != 0 {
		n := *s
		n.sweep = 0
		yield(n, "crashes", id)
		m.abandonThen(&n.attempts[id])
		yield(n, "abandon: the intent", id)
		return
	}
	for id := range s.attempts {
		m.judge(*s, int8(id), yield)
	}
}

// judge is one turn of Sweep's loop over the intents, up to the middle of
// abandon. A commit never goes, so it does not matter when exactly Sweep reads
// it; nor does it when the intent is read, for its writer changes it no more
// once there is a file.
func (m *model) judge(n modelState, id int8, yield func(modelState, string, int8)) {
	a := &n.attempts[id]
	commit := n.commits[a.extends]
	if m.collects && a.file && commit != id {
		c := n
		c.attempts[id].file = false
		yield(c, "removes a file that is old and not committed", id)
	}
	if a.intent == noIntent || commit == 0 && !(m.sweepsTip && a.extends == n.tip()) {
		return
	}
	keep := m.keepsLive && n.mayWrite(id)
	switch {
	case commit == id && !m.sweepsOwn:
		a.intent = noIntent
		yield(n, "its own commit stands; removes the intent", id)
	case a.intent == wholeIntent:
		m.abandonFirst(a)
		if !keep {
			n.sweep = id
		}
		yield(n, "reads a dead intent; abandon: the files", id)
	case !keep: // not written whole, so no file followed it
		a.intent = noIntent
		yield(n, "a dead intent is not whole; removes it", id)
	}
}

// mayWrite reports whether the attempt's writer runs. A real Sweep would have to
// go by the intent's age, or by a lock.
func (s *modelState) mayWrite(attempt int8) bool {
	return slices.ContainsFunc(s.writers[:], func(w modelWriter) bool { return w.attempt == attempt })
}

// check returns what is wrong in a state, or nothing.
func (m *model) check(s *modelState) string {
	if m.groupOffset {
		return s.checkFiles()
	}
	var commits, rows [modelRecords]int
	first, end := int8(modelRecords), int8(0)
	for _, id := range s.commits {
		if id == 0 {
			continue
		}
		a := &s.attempts[id]
		if !a.file {
			return fmt.Sprintf("lost: a file of the commit of [%d, %d) is gone", a.start, a.end)
		}
		first, end = min(first, a.start), max(end, a.end)
		for o := a.start; o < a.end; o++ {
			commits[o]++
			rows[o] += int(a.rows >> o & 1)
		}
	}
	for o := first; o < end; o++ {
		switch {
		case commits[o] > 1:
			return fmt.Sprintf("fork: offset %d is in %d commits", o, commits[o])
		case commits[o] == 0:
			return fmt.Sprintf("gap: offset %d is in no commit", o)
		case rows[o] == 0 && o != repeated && o != repeat:
			return fmt.Sprintf("lost: offset %d has no row", o)
		}
	}
	if end > repeated {
		// Offset 1 may lie before the chain.
		switch n := rows[repeated] + rows[repeat]; {
		case n > 1:
			return fmt.Sprintf("duplicate: one event at offsets %d and %d has %d rows", repeated, repeat, n)
		case n == 0:
			return fmt.Sprintf("lost: the event at offsets %d and %d has no row", repeated, repeat)
		}
	}
	if s.quiet() {
		for id := range s.attempts {
			a := &s.attempts[id]
			commit := s.commits[a.extends]
			if a.file && a.intent == noIntent && commit != int8(id) && (commit == 0 || m.intentsAlone) {
				return fmt.Sprintf("orphan: neither a commit nor an intent names the file of a%d, [%d, %d)", id, a.start, a.end)
			}
		}
	}
	return ""
}

// checkFiles is check for protocols without a chain.
func (s *modelState) checkFiles() string {
	var files [modelRecords]int
	for _, a := range s.attempts {
		for o := a.start; a.file && o < a.end; o++ {
			files[o]++
		}
	}
	for o, n := range files {
		switch {
		case n > 1:
			return fmt.Sprintf("duplicate: offset %d is in %d files", o, n)
		case n == 0 && o < int(s.group) && o >= int(s.logStart):
			return fmt.Sprintf("lost: offset %d is before the group's and in no file", o)
		}
	}
	return ""
}

// quiet reports whether nobody works and nothing is under way. Of what is left a
// Sweep removes only what intents name, so a file without one stays for good.
func (s *modelState) quiet() bool {
	for _, w := range s.writers {
		if w.at != opening {
			return false
		}
	}
	return s.sweep == 0 && !slices.ContainsFunc(s.attempts[:], func(a modelAttempt) bool { return a.underway })
}

// normal returns the state that stands for all that differ from s in nothing
// that can matter: in which writer is which, in the numbers of attempts, in
// what an attempt that will never commit would have committed, in a late
// create that will find its name taken, and in how many attempts of nobody have
// left the same.
func (m *model) normal(s modelState) modelState {
	if m.groupOffset || m.renames {
		return s // where nothing is ever certain
	}
	var held [1 + modelAttempts]bool
	for _, w := range s.writers {
		held[w.attempt] = true
	}
	held[s.sweep] = true
	for i := range s.attempts {
		a := &s.attempts[i]
		if *a == (modelAttempt{}) {
			continue
		}
		commit := s.commits[a.extends]
		if commit != 0 {
			a.underway = false
		}
		if commit == int8(i) {
			held[i] = true
		} else if commit != 0 || !held[i] && !a.underway {
			a.start, a.end, a.rows = a.extends, a.extends+1, 0
			if commit != 0 && !held[i] && a.intent == noIntent && !m.intentsAlone {
				*a = modelAttempt{} // a file for good, which check admits
			}
		}
	}
	for i := 1; i < len(s.attempts); i++ {
		for j := 1; j < i && !held[i]; j++ {
			if !held[j] && s.attempts[i].end > 0 && s.attempts[j] == s.attempts[i] {
				s.attempts[i] = modelAttempt{}
			}
		}
	}
	if a, b := s.rank(0), s.rank(1); a > b {
		s.writers[0], s.writers[1] = s.writers[1], s.writers[0]
	}
	return s.renumber(&held)
}

// rank orders writers, whatever the numbers of their attempts.
func (s *modelState) rank(writer int) uint64 {
	w := s.writers[writer]
	r := uint64(w.at)<<8 | uint64(w.start)<<4
	if w.genesis {
		r |= 2
	}
	if w.knows {
		r |= 1
	}
	return r<<32 | s.attempts[w.attempt].rank()
}

func (a *modelAttempt) rank() uint64 {
	r := uint64(a.start)<<20 | uint64(a.end)<<16 | uint64(a.extends)<<12 | uint64(a.rows)<<4 | uint64(a.intent)<<2
	if a.file {
		r |= 2
	}
	if a.underway {
		r |= 1
	}
	return r
}

// renumber numbers the attempts in the order of who holds them, and those of
// nobody by what they have left.
func (s *modelState) renumber(held *[1 + modelAttempts]bool) modelState {
	n := *s
	n.attempts = [1 + modelAttempts]modelAttempt{}
	var to [1 + modelAttempts]int8
	last := int8(0)
	move := func(id int8) int8 {
		if id != 0 && to[id] == 0 {
			last++
			to[id] = last
			n.attempts[last] = s.attempts[id]
		}
		return to[id]
	}
	for i := range n.commits {
		n.commits[i] = move(s.commits[i])
	}
	for i := range n.writers {
		n.writers[i].attempt = move(s.writers[i].attempt)
	}
	n.sweep = move(s.sweep)
	free := last + 1
	for i := range s.attempts {
		if s.attempts[i] != (modelAttempt{}) && !held[i] {
			move(int8(i))
		}
	}
	slices.SortFunc(n.attempts[free:last+1], func(a, b modelAttempt) int { return cmp.Compare(a.rank(), b.rank()) })
	return n
}

// found is the result of a search.
type found struct {
	states, complete int // visited; of them quiet, with every record in the chain
	problem          string
	trace            []string
}

// explore visits all states breadth first, up to the first bad one, so its trace
// is one of the shortest.
func (m *model) explore() (f found) {
	visits, from := []modelState{{}}, []int32{0}
	seed := maphash.MakeSeed()
	// Of the states only hashes are kept. That two of 2 million have the same has
	// a chance of 10⁻⁷, and another seed in every run.
	seen := map[uint64]struct{}{maphash.Comparable(seed, modelState{}): {}}
	for i := int32(0); int(i) < len(visits); i++ {
		s := visits[i]
		if f.problem = m.check(&s); f.problem != "" {
			var path []modelState
			for ; i > 0; i = from[i] {
				path = append(path, visits[i])
			}
			slices.Reverse(path)
			f.trace = m.retrace(path)
			break
		}
		if len(visits) > modelStates {
			f.problem = "none, but the states are more than are visited"
			break
		}
		if s.quiet() && s.tip() == modelRecords {
			f.complete++
		}
		m.next(&s, func(n modelState, _ move) {
			n = m.normal(n)
			h := maphash.Comparable(seed, n)
			if _, ok := seen[h]; !ok {
				seen[h] = struct{}{}
				visits, from = append(visits, n), append(from, i)
			}
		})
	}
	f.states = len(seen)
	return f
}

// retrace goes a path of normal states again, keeping who is who.
func (m *model) retrace(path []modelState) (trace []string) {
	wide := *m
	wide.open = modelOpen + 2
	var s modelState
	for _, normal := range path {
		var to modelState
		var text string
		wide.next(&s, func(n modelState, v move) {
			if text != "" || m.normal(n) != normal {
				return
			}
			to, text = n, v.who+": "+v.what
			a := n.attempts[v.attempt]
			if a.end == 0 {
				a = s.attempts[v.attempt]
			}
			if a.end > 0 {
				text += fmt.Sprintf(" (a%d [%d, %d))", v.attempt, a.start, a.end)
			}
		})
		s, trace = to, append(trace, text)
	}
	return trace
}

func TestModel(t *testing.T) {
	// One goroutine works, so the race detector has nothing to find, and makes it
	// ten times slower.
	small := testing.Short() || underRace()
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			m := model{rules: p.rules, open: modelOpen, retention: p.finds != "" || !small && !p.rules.keepsLive}
			f := m.explore()
			t.Logf("%d states, %d of them complete chains at rest; %s\n\t%s", f.states, f.complete, f.problem, strings.Join(f.trace, "\n\t"))
			if p.finds == "" {
				require.Empty(t, f.problem)
				require.Greater(t, f.states, 150_000)
				require.Greater(t, f.complete, 500)
				return
			}
			require.Truef(t, strings.HasPrefix(f.problem, p.finds), "the check finds %q, not %s", f.problem, p.finds)
			require.NotContains(t, f.trace, "")
		})
	}
}

func underRace() bool {
	info, _ := debug.ReadBuildInfo()
	return info != nil && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}
