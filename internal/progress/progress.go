// Package progress draws how far long work has come: a bar where a person
// looks on, a plain line at the end elsewhere.
package progress

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// Bar is the progress of one stage. It may be used by several goroutines.
type Bar struct {
	bar   *progressbar.ProgressBar
	w     io.Writer
	label string
	start time.Time
}

// New begins a stage of total units, shown as bytes or plain counts. The bar
// is drawn when w is a terminal.
func New(w io.Writer, label string, total int64, bytes bool) *Bar {
	b := &Bar{w: w, label: label, start: time.Now()}
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return b
	}
	b.bar = progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetDescription(fmt.Sprintf("%-8s", label)),
		progressbar.OptionShowBytes(bytes),
		progressbar.OptionShowCount(),
		progressbar.OptionSetWidth(30),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)
	return b
}

// Add tells that n more units are done.
func (b *Bar) Add(n int64) {
	if b.bar != nil {
		_ = b.bar.Add64(n) // a terminal that went away is no reason to stop
	}
}

// Done ends the stage with one line of what came of it.
func (b *Bar) Done(what string) {
	if b.bar != nil {
		_ = b.bar.Finish()
	}
	fmt.Fprintf(b.w, "%-8s %s in %s\n", b.label, what, time.Since(b.start).Round(10*time.Millisecond))
}
