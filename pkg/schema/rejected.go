package schema

import (
	"errors"
	"time"
)

// Rejected is one line of a quarantine list, as a data set and a door write it
// and re-driving reads it. It says where a record is and why it could not be
// taken, and nothing of what is in it.
type Rejected struct {
	Topic     string    `json:"topic"`
	Partition int       `json:"partition"`
	Offset    int64     `json:"offset"`
	Reason    Reason    `json:"reason"`
	Path      string    `json:"path,omitempty"` // in the catalog's words
	Byte      int       `json:"byte"`           // where in the value, or -1
	Time      time.Time `json:"time"`           // when it was read, UTC, to the second
}

// Reject returns the line of a record that was not taken at a time for a
// reason. Of err, only what an *Error holds is in it.
func Reject(src Source, err error, now time.Time) Rejected {
	r := Rejected{Topic: src.Topic, Partition: src.Partition, Offset: src.Offset, Reason: ReasonOf(err), Byte: -1, Time: now.UTC().Truncate(time.Second)}
	if e := (*Error)(nil); errors.As(err, &e) {
		r.Path, r.Byte = e.Path, e.Offset
	}
	return r
}
