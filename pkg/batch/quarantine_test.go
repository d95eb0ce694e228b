package batch

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"winnow/pkg/schema"
)

// listed returns what ReadQuarantine yields: partition, offset, reason, byte.
func listed(t *testing.T, s *Store) (out []string) {
	t.Helper()
	require.NoError(t, s.ReadQuarantine(t.Context(), func(r schema.Rejected) error {
		require.Equal(t, topic, r.Topic)
		require.NotZero(t, r.Time)
		out = append(out, fmt.Sprint(r.Partition, "@", r.Offset, " ", r.Reason, " ", r.Byte))
		return nil
	}))
	return out
}

func TestReadQuarantine(t *testing.T) {
	require.Empty(t, listed(t, dataset(t)), "a data set without commits")
	for _, f := range formats {
		t.Run(f.String(), func(t *testing.T) {
			s, cs := three(t, f)
			w, err := s.Writer(t.Context(), topic, 10, Options{Format: f})
			require.NoError(t, err)
			w.Reject(schema.Source{Topic: topic, Partition: 10, Offset: 0}, errors.New("a name: J. Roe"))
			w.Reject(schema.Source{Topic: topic, Partition: 10, Offset: 1}, &schema.Error{Reason: schema.ReasonTooDeep, Offset: -1})
			_, err = w.Commit(1)
			require.NoError(t, err)
			// One whose records were all readable has no such file.
			w.Drop(schema.Source{Topic: topic, Partition: 10, Offset: 2}, schema.Withheld{Metadata: "opted_out", InApp: "opted_out"})
			_, err = w.Commit(2)
			require.NoError(t, err)
			want := []string{"0@2 malformed_json 3", "0@6 malformed_json 3", "0@10 malformed_json 3", "10@0 internal_failure -1", "10@1 too_deep -1"}
			require.Equal(t, want, listed(t, s))

			// An erasure beside it changes nothing.
			c := &cs[1]
			g := newGeneration(c, 1)
			g.without(t, s, c, slices.IndexFunc(c.Files, func(f File) bool { return f.Stream == StreamInApp }), "one")
			putGeneration(t, s, c, g)
			require.Empty(t, textsOf(t, s, *c))
			require.Equal(t, want, listed(t, s))

			// The reader's own error ends it.
			n := 0
			enough := errors.New("enough")
			require.ErrorIs(t, s.ReadQuarantine(t.Context(), func(schema.Rejected) error { n++; return enough }), enough)
			require.Equal(t, 1, n)
		})
	}
}

// TestReadQuarantineCompares: of a list that is not what was committed no line
// is yielded, and the error names the file and nothing in it.
func TestReadQuarantineCompares(t *testing.T) {
	s, cs := three(t, JSONL)
	f := cs[1].Files[slices.IndexFunc(cs[1].Files, func(f File) bool { return f.Stream == StreamQuarantine })]
	b, err := os.ReadFile(s.abs(f.Path))
	require.NoError(t, err)
	for name, tampered := range map[string][]byte{
		"another offset": slices.Replace(slices.Clone(b), len(b)/2, len(b)/2+1, 'x'),
		"cut":            b[:len(b)-1],
		"more":           append(slices.Clone(b), b...),
		"empty":          {},
	} {
		put(t, s, f.Path, tampered)
		var offsets []int64
		err := s.ReadQuarantine(t.Context(), func(r schema.Rejected) error { offsets = append(offsets, r.Offset); return nil })
		require.ErrorContains(t, err, f.Path, name)
		require.Equal(t, []int64{2}, offsets, name)
	}
	require.NoError(t, os.Remove(s.abs(f.Path)))
	require.ErrorContains(t, s.ReadQuarantine(t.Context(), func(schema.Rejected) error { return nil }), f.Path)
}
