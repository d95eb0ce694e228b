// Package failpoint lets a test stand at every place where a process may die
// and at every call that may fail. In production Hook is nil and a point costs
// one comparison.
package failpoint

// Point is one place in a program. A call that changes or reads a store has
// two, before it is made and after it returned without an error, so that every
// window between two calls has a point in it whatever the calls are.
type Point struct {
	Op    string // the call: write, fsync, link, put, …; or a place of its own: polled, hint
	Name  string // the file, directory or object that it is about
	Other string // the second name of a link
	After bool
}

// Hook is called at every point, from any goroutine. An error that it returns
// stands for the call's own: before the call, the call is not made; after it,
// it was made and says that it failed, as when a reply is lost. Tests set it
// before anything runs.
var Hook func(Point) error

// At reports a point to the hook.
func At(p Point) error {
	if Hook == nil {
		return nil
	}
	return Hook(p)
}

// Around makes a call between its two points.
func Around(op, name string, call func() error) error {
	if err := At(Point{Op: op, Name: name}); err != nil {
		return err
	}
	if err := call(); err != nil {
		return err
	}
	return At(Point{Op: op, Name: name, After: true})
}
