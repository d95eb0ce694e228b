package batch

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"winnow/internal/failpoint"
	"winnow/pkg/schema"
)

const bothStreams = schema.Metadata | schema.InApp

// policyChange is one record of the tenants topic: the streams that a tenant's
// events may feed from then on.
type policyChange struct {
	tenant  string
	streams schema.Streams
}

// tenantsTopic is the policy as a worker knows it while it commits: the changes
// up to where it has read. Who is not in it may feed both streams.
type tenantsTopic struct {
	changes []policyChange
	views   []int64 // the offsets that were asked for, one for each review
}

// at returns what the changes up to an offset let a tenant's events feed.
func (p *tenantsTopic) at(offset int64, tenant string) schema.Streams {
	for _, c := range slices.Backward(p.changes[:offset+1]) {
		if c.tenant == tenant {
			return c.streams
		}
	}
	return bothStreams
}

func (p *tenantsTopic) put(tenant string, streams schema.Streams) {
	p.changes = append(p.changes, policyChange{tenant, streams})
}

func (p *tenantsTopic) tip() int64 { return int64(len(p.changes)) - 1 }

// why is the reason of a stream that the change at an offset withholds.
func (p *tenantsTopic) why(offset int64, tenant string) (why schema.Withheld) {
	streams := p.at(offset, tenant)
	if streams&schema.Metadata == 0 {
		why.Metadata = "metadata_off"
	}
	if streams&schema.InApp == 0 {
		why.InApp = "in_app_off"
	}
	return why
}

func (p *tenantsTopic) consent() Consent {
	return Consent{
		Sync: func(context.Context) (int64, error) { p.views = append(p.views, p.tip()); return p.tip(), nil },
		Decide: func(e schema.Envelope) (schema.Streams, schema.Withheld) {
			return p.at(p.tip(), e.Tenant), p.why(p.tip(), e.Tenant)
		},
	}
}

// isWrite reports whether a point stands before a data file under the
// directory is made.
func isWrite(p failpoint.Point, dir string) bool {
	return p.Op == "open" && !p.After && strings.HasPrefix(p.Name, dir+"/")
}

// requireNothingElse says that the dataset holds the files of its commits and
// none of the tries that were abandoned.
func requireNothingElse(t testing.TB, s *Store) {
	t.Helper()
	want := []string{marker}
	chain, err := s.Chain(topic, 0)
	require.NoError(t, err)
	for _, c := range chain {
		want = append(want, commitFile(Partition{topic, 0}, c.extends()))
		for _, f := range c.Files {
			want = append(want, f.Path)
		}
	}
	require.ElementsMatch(t, want, files(t, s, "."))
	require.Zero(t, clean(t, s).Orphans)
}

// An opt-out that arrives while a batch is held, or while its files are
// written, bites before the commit.
func TestConsentWithdrawn(t *testing.T) {
	const reason = "opted_out"
	for name, tc := range map[string]struct {
		when func(p failpoint.Point) bool // nil: between Add and Commit
		late bool                         // the commit obeys the policy before it
	}{
		"between Add and Commit":            {nil, false},
		"before the first data file":        {func(p failpoint.Point) bool { return isWrite(p, inAppDir) }, false},
		"while a data file is half written": {func(p failpoint.Point) bool { return p.Op == "write" && p.After && strings.HasPrefix(p.Name, inAppDir) }, false},
		"while the metadata is written":     {func(p failpoint.Point) bool { return isWrite(p, metadataDir) }, false},
		"after the last data file": {func(p failpoint.Point) bool {
			return p.Op == "fsyncdir" && p.After && strings.HasPrefix(p.Name, seenDir+"/") && strings.HasSuffix(p.Name, "/0")
		}, false},
		"while the commit is linked": {isLink, true},
	} {
		for _, f := range formats {
			t.Run(name+" "+f.String(), func(t *testing.T) {
				s, sc := dataset(t), newSource(t)
				at, out := int64(41), false
				w := open(t, s, Options{Format: f, Provenance: Provenance{TenantsOffset: 7, EventTime: "record"}, Consent: Consent{
					Sync: func(context.Context) (int64, error) { return at, nil },
					Decide: func(e schema.Envelope) (schema.Streams, schema.Withheld) {
						if out && e.Tenant == "leaving" {
							return 0, schema.Withheld{Metadata: reason, InApp: reason}
						}
						return bothStreams, schema.Withheld{}
					},
				}})
				optOut := func() { at, out = 42, true }
				require.NoError(t, w.Add(sc.parts(0, []string{"stays 0", "and its body, joe@example.org"})))
				require.NoError(t, w.Add(sc.parts(1, []string{"leaves 1", "write to ann@example.org"}, ofTenant("leaving"))))
				require.NoError(t, w.Add(sc.record(2, "leaves 2", ofTenant("leaving"), in("us", time.October)))) // a file of its own
				require.NoError(t, w.Add(sc.record(3, "stays 3")))
				require.NoError(t, w.Add(sc.record(4, "leaves 4", ofTenant("leaving"), only(schema.Metadata, schema.Withheld{InApp: "in_app_off"}))))
				require.NoError(t, w.Add(sc.record(5, "leaves 5", ofTenant("leaving"), only(schema.InApp, schema.Withheld{Metadata: "metadata_off"}))))
				require.NoError(t, w.Add(sc.parts(6, nil, ofTenant("leaving")))) // no text
				require.NoError(t, w.Add(sc.record(7, "stays 7", ofTenant("other"))))
				tries := 0
				if tc.when == nil {
					optOut()
				}
				setHook(t, func(p failpoint.Point) error {
					if isWrite(p, intentsDir) {
						tries++
					}
					if tc.when != nil && !out && tc.when(p) {
						optOut()
					}
					return nil
				})
				c, err := w.Commit(7)
				require.NoError(t, err)
				failpoint.Hook = nil
				require.True(t, out, "the moment was reached")
				requireNothingElse(t, s)
				if tc.late {
					require.EqualValues(t, 41, c.Provenance.TenantsOffset, "it does not claim to obey what it did not know")
					require.EqualValues(t, 6, c.InApp.Documents)
					return
				}
				want := 1
				if tc.when != nil {
					want = 2
				}
				require.Equal(t, want, tries)
				require.Equal(t, Provenance{TenantsOffset: 42, EventTime: "record"}, c.Provenance)
				require.Equal(t, []string{"stays 0", "and its body, [EMAIL_1]", "stays 3", "stays 7"}, allTexts(t, s))
				require.Equal(t, InAppCounts{3, 4, map[schema.Reason]int64{reason: 3, "in_app_off": 1, schema.ReasonNoText: 1}}, c.InApp)
				require.Equal(t, MetadataCounts{3, map[schema.Reason]int64{reason: 4, "metadata_off": 1}}, c.Metadata)
				require.Equal(t, map[string]int64{"EMAIL": 1}, c.Spans)
				require.Equal(t, []string{StreamInApp, StreamMetadata, StreamSeen}, streams(c))

				// The next batch is not held to what left this one.
				require.NoError(t, w.Add(sc.record(8, "stays 8")))
				c, err = w.Commit(8)
				require.NoError(t, err)
				require.EqualValues(t, 1, c.InApp.Documents)
				requireNothingElse(t, s)
			})
		}
	}
}

// Each try may find that another tenant has left.
func TestConsentWithdrawnAgainAndAgain(t *testing.T) {
	s, in := dataset(t), newSource(t)
	p := new(tenantsTopic)
	w := open(t, s, Options{Consent: p.consent()})
	tenants := []string{"a", "b", "c", "d"}
	for o, name := range tenants {
		require.NoError(t, w.Add(in.record(int64(o), "of "+name, ofTenant(name))))
	}
	tries := 0
	setHook(t, func(pt failpoint.Point) error {
		if isWrite(pt, inAppDir) && tries < 3 {
			p.put(tenants[tries], 0)
			tries++
		}
		return nil
	})
	c, err := w.Commit(3)
	require.NoError(t, err)
	failpoint.Hook = nil
	require.Equal(t, []int64{-1, 0, 1, 2, 2}, p.views, "one review before the files, one after each try's")
	require.EqualValues(t, 2, c.Provenance.TenantsOffset)
	require.Equal(t, []string{"of d"}, allTexts(t, s))
	require.Equal(t, InAppCounts{1, 1, map[schema.Reason]int64{"in_app_off": 3}}, c.InApp)
	require.Equal(t, MetadataCounts{1, map[schema.Reason]int64{"metadata_off": 3}}, c.Metadata)
	requireNothingElse(t, s)
}

// What has left a batch does not come back to it, although the tenant does.
func TestConsentGivenAgain(t *testing.T) {
	s, in := dataset(t), newSource(t)
	p := new(tenantsTopic)
	w := open(t, s, Options{Consent: p.consent()})
	require.NoError(t, w.Add(in.record(0, "a before", ofTenant("a"))))
	require.NoError(t, w.Add(in.record(1, "b", ofTenant("b"))))
	p.put("a", 0)
	tries := 0
	setHook(t, func(pt failpoint.Point) error {
		if isWrite(pt, inAppDir) {
			switch tries++; tries {
			case 1:
				p.put("a", bothStreams)
				p.put("b", schema.InApp)
			case 2:
				p.put("b", bothStreams)
			}
		}
		return nil
	})
	c, err := w.Commit(1)
	require.NoError(t, err)
	failpoint.Hook = nil
	require.Equal(t, 2, tries)
	require.EqualValues(t, 3, c.Provenance.TenantsOffset)
	require.Equal(t, []string{"b"}, allTexts(t, s))
	require.Equal(t, InAppCounts{1, 1, map[schema.Reason]int64{"in_app_off": 1}}, c.InApp)
	require.Equal(t, MetadataCounts{0, map[schema.Reason]int64{"metadata_off": 2}}, c.Metadata)
	require.Equal(t, []string{StreamInApp, StreamSeen}, streams(c))
	requireNothingElse(t, s)

	require.NoError(t, w.Add(in.record(2, "a after", ofTenant("a"))))
	_, err = w.Commit(2)
	require.NoError(t, err)
	require.Equal(t, []string{"b", "a after"}, allTexts(t, s))
	clean(t, s)
}

func TestConsentNarrowed(t *testing.T) {
	for name, tc := range map[string]struct {
		streams  schema.Streams
		files    []string
		inApp    InAppCounts
		metadata MetadataCounts
	}{
		"to metadata": {schema.Metadata, []string{StreamMetadata, StreamSeen},
			InAppCounts{0, 0, map[schema.Reason]int64{"in_app_off": 2}}, MetadataCounts{2, map[schema.Reason]int64{}}},
		"to in-app": {schema.InApp, []string{StreamInApp, StreamSeen},
			InAppCounts{2, 3, map[schema.Reason]int64{}}, MetadataCounts{0, map[schema.Reason]int64{"metadata_off": 2}}},
		"to nothing": {0, []string{StreamSeen},
			InAppCounts{0, 0, map[schema.Reason]int64{"in_app_off": 2}}, MetadataCounts{0, map[schema.Reason]int64{"metadata_off": 2}}},
	} {
		for _, during := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", during the commit: ", during), func(t *testing.T) {
				s, in := dataset(t), newSource(t)
				p := new(tenantsTopic)
				w := open(t, s, Options{Consent: p.consent()})
				require.NoError(t, w.Add(in.parts(0, []string{"one", "two, joe@example.org"})))
				require.NoError(t, w.Add(in.record(1, "three")))
				if !during {
					p.put("acme-tenant", tc.streams)
				}
				setHook(t, func(pt failpoint.Point) error {
					if during && isWrite(pt, seenDir) && p.tip() < 0 {
						p.put("acme-tenant", tc.streams)
					}
					return nil
				})
				c, err := w.Commit(1)
				require.NoError(t, err)
				failpoint.Hook = nil
				require.Equal(t, tc.files, streams(c))
				require.Equal(t, tc.inApp, c.InApp)
				require.Equal(t, tc.metadata, c.Metadata)
				require.Equal(t, tc.inApp.Documents > 0, len(c.Spans) > 0)
				require.Len(t, allTexts(t, s), int(tc.inApp.Rows))
				requireNothingElse(t, s)
			})
		}
	}
}

// A policy that moves on while it is asked: the commit claims the offset that
// all of its rows obey. Claiming the later one would hide the row of a tenant
// that left in between from the erasure, which starts at what commits claim.
func TestConsentMovesDuringReview(t *testing.T) {
	s, in := dataset(t), newSource(t)
	p := new(tenantsTopic)
	c := p.consent()
	decide, asked := c.Decide, 0
	c.Decide = func(e schema.Envelope) (schema.Streams, schema.Withheld) {
		streams, why := decide(e)
		if asked++; asked == 4 { // the last record at the last review
			p.put("b", 0)
		}
		return streams, why
	}
	w := open(t, s, Options{Consent: c})
	require.NoError(t, w.Add(in.record(0, "a", ofTenant("a"))))
	require.NoError(t, w.Add(in.record(1, "b", ofTenant("b"))))
	got, err := w.Commit(1)
	require.NoError(t, err)
	require.Equal(t, 4, asked)
	require.Equal(t, []string{"a", "b"}, allTexts(t, s))
	require.EqualValues(t, -1, got.Provenance.TenantsOffset)
}

// A general event that made way for the specific one is not asked about again,
// and does not come back when the specific one has to leave.
func TestConsentOfAnEdit(t *testing.T) {
	s, in := dataset(t), newSource(t)
	p := new(tenantsTopic)
	w := open(t, s, Options{Consent: p.consent()})
	require.NoError(t, w.Add(in.record(0, "", issueUpdated("31012", written, wording))))
	require.NoError(t, w.Add(in.record(1, "", commentCreated("31012", written, wording))))
	p.put("acme-tenant", schema.Metadata)
	c, err := w.Commit(1)
	require.NoError(t, err)
	require.Equal(t, InAppCounts{0, 0, map[schema.Reason]int64{schema.ReasonToldTwice: 1, "in_app_off": 1}}, c.InApp)
	require.Equal(t, MetadataCounts{2, map[schema.Reason]int64{}}, c.Metadata)
	require.Empty(t, c.Spans)
	requireNothingElse(t, s)
}

// A stream that is withheld without a reason would leave the double entry open.
func TestConsentWithoutAReason(t *testing.T) {
	for _, during := range []bool{false, true} {
		s, in := dataset(t), newSource(t)
		out := !during
		w := open(t, s, Options{Consent: Consent{Sync: func(context.Context) (int64, error) { return 0, nil }, Decide: func(schema.Envelope) (schema.Streams, schema.Withheld) {
			if out {
				return schema.Metadata, schema.Withheld{}
			}
			return bothStreams, schema.Withheld{}
		}}})
		require.NoError(t, w.Add(in.record(0, "x")))
		setHook(t, func(p failpoint.Point) error { out = out || isWrite(p, inAppDir); return nil })
		_, err := w.Commit(0)
		failpoint.Hook = nil
		require.ErrorContains(t, err, "events/0@0: a stream was dropped without a reason")
		_, again := w.Commit(0)
		require.Equal(t, err, again)
		next, err := s.Next(topic, 0)
		require.NoError(t, err)
		require.Zero(t, next)
		requireNothingElse(t, s)
	}
}

// drawn is a record of a drawn batch.
type drawn struct {
	offset  int64
	tenant  string
	region  string
	month   time.Month
	parts   int
	streams schema.Streams
}

func (d drawn) texts() (out []string) {
	for i := range d.parts {
		out = append(out, fmt.Sprint("text ", d.offset, " ", i))
	}
	return out
}

// Any changes at any moments of a commit, against a reference that asks every
// view of the policy about every record.
func TestConsentAgainstReference(t *testing.T) {
	scrubber := newSource(t).s
	defer func() { failpoint.Hook = nil }()
	rapid.Check(t, func(rt *rapid.T) {
		d := drawing{t, rt}
		s, err := Create(memoryDir(t))
		require.NoError(d, err)
		sc, p := source{d, scrubber}, new(tenantsTopic)
		tenants := rapid.SampledFrom([]string{"a", "b", "c"})
		streams := rapid.SampledFrom([]schema.Streams{0, schema.Metadata, schema.InApp, bothStreams})
		move := func() { p.put(tenants.Draw(rt, "tenant"), streams.Draw(rt, "may feed")) }
		w := open(d, s, Options{Format: JSONL, Consent: p.consent()})
		var batch []drawn
		for o := range rapid.Int64Range(1, 8).Draw(rt, "records") {
			x := drawn{o, tenants.Draw(rt, "of"), rapid.SampledFrom([]string{"eu", "us"}).Draw(rt, "region"),
				rapid.SampledFrom([]time.Month{time.September, time.October}).Draw(rt, "month"), rapid.IntRange(0, 2).Draw(rt, "parts"),
				rapid.SampledFrom([]schema.Streams{schema.Metadata, schema.InApp, bothStreams, bothStreams}).Draw(rt, "streams")}
			batch = append(batch, x)
			withheld := schema.Withheld{}
			if x.streams&schema.Metadata == 0 {
				withheld.Metadata = "at_first"
			}
			if x.streams&schema.InApp == 0 {
				withheld.InApp = "at_first"
			}
			require.NoError(d, w.Add(sc.parts(o, x.texts(), ofTenant(x.tenant), in(x.region, x.month), only(x.streams, withheld))))
		}
		for range rapid.IntRange(0, 2).Draw(rt, "changes before") {
			move()
		}
		points := rapid.SliceOfN(rapid.IntRange(0, 60), 0, 6).Draw(rt, "changes at points")
		n, linked := 0, false
		failpoint.Hook = func(pt failpoint.Point) error {
			// A change behind the last review is for the next batch.
			linked = linked || strings.HasPrefix(pt.Name, commitsDir)
			if n++; !linked && slices.Contains(points, n) {
				move()
			}
			return nil
		}
		c, err := w.Commit(int64(len(batch)) - 1)
		failpoint.Hook = nil
		require.NoError(d, err)

		require.Equal(d, p.views[len(p.views)-1], c.Provenance.TenantsOffset)
		wantInApp, wantMetadata := InAppCounts{Drops: map[schema.Reason]int64{}}, MetadataCounts{Drops: map[schema.Reason]int64{}}
		var kept []drawn
		for _, x := range batch {
			inApp, metadata := schema.Reason(""), schema.Reason("")
			switch {
			case x.streams&schema.InApp == 0:
				inApp = "at_first"
			case x.parts == 0:
				inApp = schema.ReasonNoText
			}
			if x.streams&schema.Metadata == 0 {
				metadata = "at_first"
			}
			for _, view := range p.views {
				why := p.why(view, x.tenant)
				inApp, metadata = cmp.Or(inApp, why.InApp), cmp.Or(metadata, why.Metadata)
			}
			if inApp == "" {
				kept = append(kept, x)
				wantInApp.Documents++
				wantInApp.Rows += int64(x.parts)
				require.NotZero(d, p.at(c.Provenance.TenantsOffset, x.tenant)&schema.InApp)
			} else {
				wantInApp.Drops[inApp]++
			}
			if metadata == "" {
				wantMetadata.Counted++
			} else {
				wantMetadata.Drops[metadata]++
			}
		}
		require.Equal(d, wantInApp, c.InApp)
		require.Equal(d, wantMetadata, c.Metadata)
		slices.SortStableFunc(kept, func(a, b drawn) int {
			return cmp.Or(cmp.Compare(a.region, b.region), cmp.Compare(a.month, b.month))
		})
		var want []string
		for _, x := range kept {
			want = append(want, x.texts()...)
		}
		require.Equal(d, want, allTexts(d, s))
		requireNothingElse(d, s)
	})
}

// A record that could not be decided is listed, when it comes and when a review
// finds it so; the list is in the order of offsets. Driven again, it is no
// repeat.
func TestUndecidedIsListedAndMayComeAgain(t *testing.T) {
	const reason = "tenant_stale"
	undecided := schema.Withheld{Metadata: reason, InApp: reason, Undecided: true}
	s, sc := dataset(t), newSource(t)
	stale, late := true, false
	w := open(t, s, Options{Consent: Consent{
		Sync: func(context.Context) (int64, error) { return 3, nil },
		Decide: func(e schema.Envelope) (schema.Streams, schema.Withheld) {
			switch {
			case stale && e.Tenant == "stale", late && e.Tenant == "late":
				return 0, undecided
			case e.Tenant == "left":
				return 0, schema.Withheld{Metadata: "opted_out", InApp: "opted_out"}
			}
			return bothStreams, schema.Withheld{}
		},
	}})
	comment := commentCreated("7", "2026-09-01T00:00:00.000+0000", "a comment")
	require.NoError(t, w.Add(sc.record(0, "stays")))
	require.NoError(t, w.Add(sc.record(1, "late 1", ofTenant("late"))))
	require.NoError(t, w.Add(sc.record(2, "", ofTenant("stale"), comment)))
	require.NoError(t, w.Add(sc.record(3, "left 3", ofTenant("left"))))
	w.Drop(src(4), undecided)
	w.Reject(src(5), &schema.Error{Reason: schema.ReasonWrongType, Path: "fields.summary", Offset: 9})
	w.Drop(src(6), schema.Withheld{Metadata: "opted_out", InApp: "opted_out"})
	setHook(t, func(p failpoint.Point) error {
		late = late || isWrite(p, inAppDir) // the second review finds it
		return nil
	})
	c, err := w.Commit(6)
	require.NoError(t, err)
	failpoint.Hook = nil
	require.Equal(t, map[schema.Reason]int64{reason: 3, "opted_out": 2, schema.ReasonWrongType: 1}, c.Metadata.Drops)
	requireNothingElse(t, s)
	var listed []string
	for _, f := range c.Files {
		if f.Stream == StreamSeen {
			require.EqualValues(t, 2, f.Rows, "those that stay, and those that were decided")
		}
		if f.Stream == StreamQuarantine {
			b, err := os.ReadFile(s.abs(f.Path))
			require.NoError(t, err)
			require.NoError(t, decodeLines(bytes.NewReader(b), func(r schema.Rejected) error {
				listed = append(listed, fmt.Sprint(r.Offset, " ", r.Reason, " ", r.Path))
				return nil
			}))
		}
	}
	require.Equal(t, []string{"1 tenant_stale ", "2 tenant_stale ", "4 tenant_stale ", "5 wrong_type fields.summary"}, listed)

	// The same events again: those that were undecided are taken, in this
	// process and in the next; the others are repeats.
	stale, late = false, false
	ids := func(n int64) func(*schema.Event) {
		r := sc.record(n, "")
		e := r.Envelope()
		return withID(e.ID)
	}
	for _, again := range []int64{7, 17} {
		if again == 17 {
			o := w.options
			w.Close()
			s, err = Open(s.dir()) // as another process
			require.NoError(t, err)
			w = open(t, s, o)
		}
		require.NoError(t, w.Add(sc.record(again, "stays", ids(0))))
		require.NoError(t, w.Add(sc.record(again+1, "late 1", ids(1), ofTenant("late"))))
		require.NoError(t, w.Add(sc.record(again+2, "", ids(2), ofTenant("stale"), comment)))
		require.NoError(t, w.Add(sc.record(again+3, "left 3", ids(3), ofTenant("left"))))
		c, err = w.Commit(again + 3)
		require.NoError(t, err)
		if again == 7 {
			require.EqualValues(t, 2, c.InApp.Drops[schema.ReasonRepeat])
			require.EqualValues(t, 2, c.InApp.Documents)
		} else {
			require.EqualValues(t, 4, c.InApp.Drops[schema.ReasonRepeat])
		}
	}
	clean(t, s)
}

// A review that cannot be made is no commit, and leaves no file.
func TestConsentCannotBeAsked(t *testing.T) {
	boom := errors.New("the topic is away")
	for _, failAt := range []int{1, 2} {
		s, sc := dataset(t), newSource(t)
		asked := 0
		w := open(t, s, Options{Consent: Consent{
			Sync: func(context.Context) (int64, error) {
				if asked++; asked == failAt {
					return 0, boom
				}
				return 0, nil
			},
			Decide: func(schema.Envelope) (schema.Streams, schema.Withheld) { return bothStreams, schema.Withheld{} },
		}})
		require.NoError(t, w.Add(sc.record(0, "text")))
		_, err := w.Commit(0)
		require.ErrorIs(t, err, boom)
		requireNothingElse(t, s)
	}
}

// A chain does not go on with less of the tenants topic than it has obeyed, nor
// with another topic, unless that one is named.
func TestTenantsTopicGoesBack(t *testing.T) {
	s, sc := dataset(t), newSource(t)
	writer := func(id string, at int64, accept string) (*Writer, error) {
		return s.Writer(t.Context(), topic, 0, Options{Provenance: Provenance{TenantsTopicID: id}, AcceptTenantsTopic: accept, Consent: Consent{
			Sync:   func(context.Context) (int64, error) { return at, nil },
			Decide: func(schema.Envelope) (schema.Streams, schema.Withheld) { return bothStreams, schema.Withheld{} },
		}})
	}
	commit := func(w *Writer, offset int64) error {
		require.NoError(t, w.Add(sc.record(offset, "text")))
		_, err := w.Commit(offset)
		w.Close()
		return err
	}
	w, err := writer("one", 5, "")
	require.NoError(t, err)
	require.NoError(t, commit(w, 0))

	w, err = writer("one", 4, "")
	require.NoError(t, err)
	require.ErrorContains(t, commit(w, 1), "records of it were lost")
	w, err = writer("one", 5, "")
	require.NoError(t, err)
	require.NoError(t, commit(w, 1))

	other := (*TenantsTopicError)(nil)
	for _, accept := range []string{"", "one", "three"} {
		_, err = writer("two", 9, accept)
		require.ErrorAs(t, err, &other)
	}
	require.Equal(t, TenantsTopicError{Partition{topic, 0}, "one", "two"}, *other)
	_, err = writer("", 9, "")
	require.ErrorAs(t, err, &other)
	w, err = writer("two", 0, "two")
	require.NoError(t, err)
	require.NoError(t, commit(w, 2))
	clean(t, s)

	// Check sees it, too.
	w, err = writer("two", 3, "")
	require.NoError(t, err)
	w.obeyed = -1
	require.NoError(t, commit(w, 3))
	w, err = writer("two", 2, "")
	require.NoError(t, err)
	w.obeyed = -1
	require.NoError(t, commit(w, 4))
	require.Len(t, check(t, s).Faults, 1)
	require.Contains(t, check(t, s).Faults[0].Problem, "up to offset 2, the commit before it up to 3")
}
