package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"winnow/internal/broker"
	"winnow/internal/kafkaio"
	"winnow/internal/tenants"
	"winnow/pkg/batch"
	"winnow/pkg/gate"
	"winnow/pkg/schema"
	"winnow/pkg/scrub"
)

// The search for leaks shares no code with the scrubber: it reads each record
// again with encoding/json, takes the display names, logins and e-mail
// addresses of every user object in it, and looks for each of them, bounded by
// anything that is not a letter or digit, in what was written of that record.

// declared are the identities of a record's own user objects.
type declared struct{ names, logins, emails map[string]bool }

func declaredIn(t *testing.T, value []byte) declared {
	t.Helper()
	d := declared{map[string]bool{}, map[string]bool{}, map[string]bool{}}
	var v any
	require.NoError(t, json.Unmarshal(value, &v))
	put := func(m map[string]bool, v any) {
		if s, ok := v.(string); ok {
			if s = strings.ToLower(strings.TrimSpace(s)); s != "" {
				m[s] = true
			}
		}
	}
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, x := range v {
				walk(x)
			}
		case map[string]any:
			user := false
			for _, k := range []string{"accountId", "displayName", "emailAddress", "userKey", "publicName"} {
				switch v[k].(type) {
				case string:
					user = true
				}
			}
			if user {
				put(d.names, v["displayName"])
				put(d.names, v["publicName"])
				put(d.logins, v["name"])
				put(d.logins, v["key"])
				put(d.logins, v["username"])
				put(d.emails, v["emailAddress"])
				put(d.emails, v["email"])
			}
			for _, x := range v {
				walk(x)
			}
		}
	}
	walk(v)
	return d
}

var (
	placeholder = regexp.MustCompile(`\[(PERSON|EMAIL|USERNAME|ACCOUNT_ID|PHONE|IP|URL_ACCOUNT|CREDENTIAL)_[0-9]+\]`)
	xmlTags     = regexp.MustCompile(`<[^>]*>`)
)

// readings are the texts that a reader may see in one written text: as it
// stands, and without its markup.
func readings(format, text string) []string {
	out := []string{text}
	switch format {
	case "storage":
		out = append(out, html.UnescapeString(xmlTags.ReplaceAllString(text, "")), html.UnescapeString(xmlTags.ReplaceAllString(text, " ")))
	case "adf":
		var b, spaced strings.Builder
		var v any
		if json.Unmarshal([]byte(text), &v) != nil {
			return []string{"not JSON"}
		}
		var walk func(any)
		walk = func(v any) {
			switch v := v.(type) {
			case []any:
				for _, x := range v {
					walk(x)
				}
			case map[string]any:
				if s, ok := v["text"].(string); ok {
					b.WriteString(s)
					spaced.WriteString(s + " ")
				}
				walk(v["attrs"])
				walk(v["content"])
				if v["type"] == "paragraph" {
					b.WriteString("\n\n\n")
				}
			}
		}
		walk(v)
		out = append(out, b.String(), spaced.String())
	}
	for i := range out {
		out[i] = strings.ToLower(placeholder.ReplaceAllString(out[i], "\x00"))
	}
	return out
}

// bounded reports whether s stands in text with no letter or digit beside it,
// and calls use with each place.
func bounded(text, s string, use func(before string) bool) bool {
	for at := 0; ; {
		i := strings.Index(text[at:], s)
		if i < 0 {
			return false
		}
		at += i
		l, _ := utf8.DecodeLastRuneInString(text[:at])
		r, _ := utf8.DecodeRuneInString(text[at+len(s):])
		if !wordRune(l) && !wordRune(r) && use(text[:at]) {
			return true
		}
		at += len(s)
	}
}

func wordRune(r rune) bool { return r != utf8.RuneError && (unicode.IsLetter(r) || unicode.IsDigit(r)) }

// leaks counts what was searched and what was found; the findings name
// coordinates and sort, never the identity.
type leaks struct {
	documents, identities, excluded int
	found                           []string
	everyone                        map[string]bool // names, addresses and uncommon logins of all records
}

func (l *leaks) search(at schema.Source, d declared, texts []row) {
	l.documents++
	var all []string
	for _, r := range texts {
		all = append(all, readings(r.Format, r.Text)...)
	}
	anywhere := func(string) bool { return true }
	// A login that is a dictionary word counts where the text uses it as a user.
	asUser := func(before string) bool {
		return strings.HasSuffix(before, "@") || strings.HasSuffix(before, "[~")
	}
	look := func(sort string, ids map[string]bool) {
		for id := range ids {
			if !strings.ContainsFunc(id, wordRune) {
				continue
			}
			use := anywhere
			if sort == "login" && scrub.CommonWord(id) && !d.names[id] {
				l.excluded++
				use = asUser
			} else {
				l.identities++
				l.everyone[id] = true
			}
			for _, text := range all {
				if bounded(text, id, use) {
					l.found = append(l.found, fmt.Sprintf("%s: a %s of %d letters", at, sort, utf8.RuneCountInString(id)))
					break
				}
			}
		}
	}
	look("name", d.names)
	look("login", d.logins)
	look("e-mail address", d.emails)
}

// searchLeaks replays the paths and searches every document written for the
// identities of the record that it was made of.
func searchLeaks(t *testing.T, args ...string) (leaks, result) {
	t.Helper()
	dir := t.TempDir()
	out, data := filepath.Join(dir, "out"), filepath.Join(dir, "broker")
	r := deidentify(t, "", append([]string{"replay", "--out", out, "--keep-broker", data}, args...)...)
	require.Zero(t, r.code, r.stderr)

	// What is on the topic, again.
	b, err := broker.Start(data, broker.Options{})
	require.NoError(t, err)
	defer b.Close()
	client, err := kafkaio.Dial([]string{b.Addr()}, kafkaio.Options{ClientID: "leak-test"})
	require.NoError(t, err)
	defer client.Close()
	store, err := batch.Open(out)
	require.NoError(t, err)
	assumed := strings.Contains(strings.Join(args, " "), "--assume-consent")
	table, err := tenants.Load(t.Context(), client, tenantsTopic, tenants.Options{Gate: gate.Options{AssumeConsent: assumed}, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	policy := table.Policy

	// A document has no key and no offset, so it is matched by order: within a
	// commit, documents of one region and month stand in the order of offsets.
	type kept struct {
		at        schema.Source
		d         declared
		specific  bool // tells of a comment alone
		withdrawn bool // because a later event is more specific
	}
	type group struct {
		partition     int
		start         int64
		region, month string
	}
	events := map[group][]*kept{}
	starts := map[int][]batch.Commit{}
	ps, err := store.Partitions()
	require.NoError(t, err)
	for _, p := range ps {
		starts[p.Partition], err = store.Chain(p.Topic, p.Partition)
		require.NoError(t, err)
	}
	rejected := map[schema.Source]bool{} // readable, but with malformed markup
	lists, err := filepath.Glob(filepath.Join(out, "_quarantine", "*", "*", "*"))
	require.NoError(t, err)
	for _, list := range lists {
		b, err := os.ReadFile(list)
		require.NoError(t, err)
		for _, line := range bytes.Split(bytes.TrimSpace(b), []byte("\n")) {
			var q struct {
				Topic     string
				Partition int
				Offset    int64
			}
			require.NoError(t, json.Unmarshal(line, &q))
			rejected[schema.Source{Topic: q.Topic, Partition: q.Partition, Offset: q.Offset}] = true
		}
	}
	repeats := map[string]bool{}
	told := map[string]*kept{} // by comment and edit, the event that tells of it
	_, err = client.ReadAll(context.Background(), eventsTopic, func(p int, r kafkaio.Record) error {
		e := schema.Event{Value: r.Value, Source: schema.Source{Topic: eventsTopic, Partition: p, Offset: r.Offset}}
		var err error
		if e.Envelope, err = schema.ParseHeaders(r.Headers); err != nil || policy.Decide(e.Envelope, fixedNow).Streams() == 0 || e.Parse() != nil {
			return nil
		}
		d := policy.Decide(e.Envelope, fixedNow)
		if d.Streams() == 0 || rejected[e.Source] || repeats[e.ID] {
			return nil
		}
		repeats[e.ID] = true
		if !d.InApp || len(e.Texts()) == 0 {
			return nil
		}
		var c batch.Commit
		for _, c = range starts[p] {
			if r.Offset < c.End {
				break
			}
		}
		g := group{p, c.Start, d.Region, e.Time.Format("2006-01")}
		k := &kept{at: e.Source, d: declaredIn(t, bytes.Clone(r.Value))}
		var hook struct {
			WebhookEvent string
			Comment      struct{ ID, Updated string }
		}
		if json.Unmarshal(r.Value, &hook) == nil && hook.WebhookEvent != "" && hook.Comment.ID != "" {
			edit := fmt.Sprint(p, e.Tenant, hook.Comment)
			first := told[edit]
			if first != nil && (strings.HasPrefix(hook.WebhookEvent, "jira:") || first.specific || first.at.Offset < c.Start) {
				return nil
			} else if first != nil {
				first.withdrawn = true
			}
			told[edit] = k
			k.specific = !strings.HasPrefix(hook.WebhookEvent, "jira:")
		}
		events[g] = append(events[g], k)
		return nil
	})
	require.NoError(t, err)

	l := leaks{everyone: map[string]bool{}}
	for _, p := range ps {
		for _, c := range starts[p.Partition] {
			docs := map[group][][]row{}
			last := ""
			require.NoError(t, store.ReadRows(c, func(f batch.File, r batch.Row) error {
				g := group{p.Partition, c.Start, f.Region, r.Month}
				if r.ID != last {
					docs[g] = append(docs[g], nil)
					last = r.ID
				}
				n := len(docs[g]) - 1
				docs[g][n] = append(docs[g][n], row{Format: r.Format, Text: r.Text})
				return nil
			}))
			for g, ds := range docs {
				of := slices.DeleteFunc(events[g], func(k *kept) bool { return k.withdrawn })
				require.Equal(t, len(of), len(ds), "documents of %v", g)
				for i, rows := range ds {
					l.search(of[i].at, of[i].d, rows)
				}
			}
		}
	}
	// Nor may the messages, the commits or the quarantine lists name anyone.
	said := map[string]string{"what the command printed": r.stdout + r.stderr}
	for _, dir := range []string{"_commits", "_quarantine"} {
		require.NoError(t, fs.WalkDir(os.DirFS(out), dir, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || err == nil && d.IsDir() {
				return nil
			}
			b, rerr := os.ReadFile(filepath.Join(out, path))
			said[path] = string(b)
			return errors.Join(err, rerr)
		}))
	}
	for where, text := range said {
		text = strings.ToLower(text)
		for id := range l.everyone {
			if len(id) > 3 && !ourWords[id] && bounded(text, id, func(string) bool { return true }) {
				l.found = append(l.found, fmt.Sprintf("%s: an identity of %d letters", where, utf8.RuneCountInString(id)))
			}
		}
	}
	return l, r
}

// ourWords are words of our own messages that are also somebody's login.
var ourWords = map[string]bool{"admin": true, "jira": true, "local": true, "issues": true, "topic": true, "commits": true}

// TestNoDeclaredIdentityIsWritten is the search over the fixtures.
func TestNoDeclaredIdentityIsWritten(t *testing.T) {
	const fixtures = "../../fixtures"
	l, _ := searchLeaks(t, fixtures+"/events", fixtures+"/bad", "--tenants", fixtures+"/tenants.jsonl")
	t.Logf("%d documents, %d identities searched, %d logins that are dictionary words searched as users only", l.documents, l.identities, l.excluded)
	require.Greater(t, l.documents, 700)
	require.Greater(t, l.identities, 1500)
	require.Empty(t, l.found)
}
