package schema

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestClassify(t *testing.T) {
	const issue, comment, page = "winnow.jira.webhook.issue_updated", "winnow.jira.webhook.comment_created", "winnow.confluence.rest.page"
	for name, c := range map[string]struct {
		typ, path string
		want      Class
	}{
		"summary":                      {issue, "issue.fields.summary", Content},
		"comment of an issue":          {issue, "issue.fields.comment.comments[].body", Content},
		"inside an ADF document":       {issue, "issue.fields.description.content[].text", Content},
		"comment beside the issue":     {issue, "comment.body", Content},
		"issue beside a comment":       {comment, "issue.fields.summary", Identifier},
		"author":                       {issue, "issue.fields.comment.comments[].author.displayName", Identifier},
		"old text in a changelog":      {issue, "changelog.items[].fromString", Identifier},
		"status category":              {issue, "issue.fields.status.statusCategory.key", Measure},
		"below a metadata row":         {"winnow.jira.rest.request", "sla.values[].ongoingCycle.goalDuration.millis", Measure},
		"status name":                  {issue, "issue.fields.status.name", Drop},
		"unknown field":                {issue, "issue.fields.customfield_10050", Drop},
		"rendered copy":                {issue, "issue.renderedFields.description", Drop},
		"a status by itself":           {"winnow.jira.rest.status", "name", Vocabulary},
		"a status's description":       {"winnow.jira.rest.status", "description", Drop},
		"an emoji's creator":           {"winnow.confluence.rest.emoji", "creatorUserId", Identifier},
		"sprint name":                  {"winnow.jira.rest.sprint", "name", Drop},
		"sprint goal":                  {"winnow.jira.rest.sprint", "goal", Drop},
		"view copy":                    {page, "body.view.value", Drop},
		"storage body":                 {page, "body.storage.value", Content},
		"not below the body's value":   {page, "body.storage.representation", Drop},
		"title of a comment":           {"winnow.confluence.rest.comment", "title", Drop},
		"another field's prefix":       {page, "titles", Drop},
		"parent of a row":              {page, "body.storage", Drop},
		"list without its brackets":    {issue, "issue.fields.comment.comments.body", Drop},
		"row of another form":          {page, "fields.summary", Drop},
		"case matters":                 {page, "Title", Drop},
		"unknown type":                 {"winnow.jira.rest.user", "displayName", Drop},
		"no type":                      {"", "title", Drop},
		"empty path":                   {page, "", Drop},
		"prefix of the type left away": {"confluence.rest.page", "title", Content},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, Classify(c.typ, c.path)) })
	}
	require.Equal(t, Drop, *new(Class), "the zero Class must let nothing out")
}

func TestCatalogRows(t *testing.T) {
	require.Len(t, Forms(), len(forms))
	for _, typ := range Forms() {
		f := forms[strings.TrimPrefix(typ, TypePrefix)]
		require.NotEmpty(t, f.kind, typ)
		require.NotEmpty(t, f.entity, typ)
		require.NotEmpty(t, f.hosts, typ)
		seen := map[string]bool{}
		contents := 0
		for _, r := range f.fields {
			at := typ + " " + r.Path
			require.NotEmpty(t, r.Path, at)
			require.False(t, seen[r.Path], "%s stands there twice", at)
			seen[r.Path] = true
			require.Equal(t, r.Class, Classify(typ, r.Path), at)
			require.Equal(t, r.Class, Classify(typ, r.Path+".below"), at)
			require.Contains(t, []Class{Drop, Identifier, Measure, Vocabulary, Content}, r.Class, at)
			require.Equal(t, r.Class == Content, r.Role != "", "%s: a role is for content", at)
			if r.Class == Content {
				contents++
				require.NotEmpty(t, r.Format.String(), at)
			} else {
				require.Zero(t, r.Format, at)
			}
		}
		require.Len(t, f.content, contents, typ)
		// What is read for the gate, the key and the host must never be content.
		for _, p := range slices.Concat([]string{f.project, f.space, f.issue}, f.entity, f.hosts) {
			require.NotEqual(t, Content, Classify(typ, p), "%s %s", typ, p)
		}
	}
}

// nodes calls f for each member of an object and element of an array, with its
// catalog path and whether it lies inside of a user object.
func nodes(v Value, path string, user bool, f func(path string, v Value, user bool)) {
	user = user || IsUser(v)
	for c, ok := v.First(); ok; c, ok = c.Next(v) {
		p := path + "[]"
		if v.Kind() == Object {
			p = strings.TrimPrefix(path+"."+string(c.Key()), ".")
		}
		f(p, c, user)
		nodes(c, p, user, f)
	}
}

// fixtureEvents are the events that a door finds in the fixtures' lines.
func fixtureEvents(t testing.TB, patterns ...string) (events []*Event, at []string) {
	t.Helper()
	var d Doc
	for _, l := range fixtureLines(t, patterns...) {
		Unwrap(&d, l.text, func(_ int, it Item, err error) {
			if err == nil {
				events, at = append(events, &Event{Envelope: it.Envelope, Value: it.Value}), append(at, l.at)
			}
		})
	}
	return events, at
}

// What Parse takes as texts and what the catalog calls content must be the same,
// on every payload of the fixtures.
func TestCatalogOnFixtures(t *testing.T) {
	events, at := fixtureEvents(t, "events/*.jsonl", "bad/*.json*")
	reached := map[Class]int{}
	parsed := map[string]bool{}
	for i, e := range events {
		if !e.Product.InScope() || e.Parse() != nil {
			continue
		}
		parsed[e.Type] = true
		taken, contents := map[string]bool{}, map[string]bool{}
		for _, x := range e.Texts() {
			require.NotEmpty(t, x.Role, at[i])
			taken[string(x.Value.Bytes())+string(x.Value.Raw())] = true
		}
		var d Doc
		require.NoError(t, d.Parse(e.Value))
		nodes(d.Root(), "", false, func(path string, v Value, user bool) {
			class := Classify(e.Type, path)
			reached[class]++
			if user {
				require.NotEqual(t, Content, class, "%s: %s lies inside of a person", at[i], path)
			}
			row := slices.ContainsFunc(forms[strings.TrimPrefix(e.Type, TypePrefix)].fields, func(r Field) bool { return r.Path == path })
			if text := string(v.Bytes()) + string(v.Raw()); class == Content && row && !v.Absent() && strings.TrimSpace(text) != "" {
				contents[text] = true
				copied := strings.Contains(path, "atlas_doc_format") && !taken[text] && len(e.Texts()) > 0
				require.True(t, taken[text] || copied, "%s: the content of %s is not taken", at[i], path)
			}
		})
		for text := range taken {
			require.True(t, contents[text], "%s: a text is taken that is no content", at[i])
		}
	}
	for _, c := range []Class{Drop, Identifier, Measure, Vocabulary, Content} {
		require.Positive(t, reached[c], "no path is %s", c)
	}
	for _, typ := range []string{"jira.rest.issue", "jira.webhook.issue_updated", "jira.webhook.comment_created", "jira.rest.request", "confluence.rest.page", "confluence.webhook.page"} {
		require.True(t, parsed[TypePrefix+typ], "no fixture of %s could be read", typ)
	}
}

// payload is a record of the form in which every row of the catalog has a value.
func payload(typ string) map[string]any {
	root := map[string]any{}
	for _, r := range forms[strings.TrimPrefix(typ, TypePrefix)].fields {
		at := root
		steps := strings.Split(r.Path, ".")
		for i, s := range steps {
			name, list := strings.CutSuffix(s, "[]")
			switch next := at[name].(type) {
			case map[string]any:
				at = next
			case []any:
				at = next[0].(map[string]any)
			default:
				if i == len(steps)-1 {
					at[name] = strings.TrimSpace("words " + r.Role)
					break
				}
				below := map[string]any{}
				at[name] = below
				if list {
					at[name] = []any{below}
				}
				at = below
			}
		}
	}
	return root
}

// objects lists the objects of a decoded JSON tree with their catalog paths.
func objects(v any, path string, f func(string, map[string]any)) {
	switch v := v.(type) {
	case map[string]any:
		f(path, v)
		for k, x := range v {
			objects(x, strings.TrimPrefix(path+"."+k, "."), f)
		}
	case []any:
		for _, x := range v {
			objects(x, path+"[]", f)
		}
	}
}

// An unknown field is dropped, never passed: whichever object it stands in, and
// whatever it holds.
func TestUnknownFieldsAreDropped(t *testing.T) {
	const canary = "CANARY"
	type record struct {
		typ  string
		tree map[string]any
	}
	var records []record
	for _, typ := range Forms() {
		records = append(records, record{typ, payload(typ)})
	}
	events, _ := fixtureEvents(t, "events/*.jsonl")
	perType := map[string]int{}
	for _, e := range events {
		if perType[e.Type]++; e.Product.InScope() && perType[e.Type] <= 3 {
			var tree map[string]any
			require.NoError(t, json.Unmarshal(e.Value, &tree))
			records = append(records, record{e.Type, tree})
		}
	}
	unknown := map[string]any{
		"zz_canary":        canary,
		"customfield_9":    map[string]any{"value": canary, "body": canary, "summary": canary, "fields": map[string]any{"summary": canary, "description": canary}},
		"renderedBody":     []any{canary, map[string]any{"body": canary, "type": "doc", "text": canary}},
		"export_view":      map[string]any{"value": canary},
		canary:             canary,
		"comment.comments": []any{map[string]any{"body": canary}},
	}
	tried, texts := 0, 0
	for _, r := range records {
		objects(r.tree, "", func(path string, o map[string]any) {
			if Classify(r.typ, path) == Content {
				return // a document in ADF, whose parts package scrub lists
			}
			for name, v := range unknown {
				before, had := o[name]
				o[name] = v
				e := Event{Envelope: Envelope{Type: r.typ}, Value: []byte(mustJSON(r.tree))}
				require.NoError(t, e.Parse())
				tried++
				texts += len(e.Texts())
				for _, x := range e.Texts() {
					require.NotContains(t, string(x.Value.Bytes())+string(x.Value.Raw()), canary, "%s: %s.%s", r.typ, path, name)
				}
				require.NotContains(t, e.Host+e.Project+e.Space+e.Kind(), canary)
				if delete(o, name); had {
					o[name] = before
				}
			}
		})
	}
	require.Greater(t, tried, 10*len(records))
	require.Greater(t, texts, tried/2, "there was hardly a text to find it in")
	// The test itself must be able to fail: the same string in a content row is found.
	p := payload("winnow.jira.rest.comment")
	p["body"] = canary
	e := Event{Envelope: Envelope{Type: "winnow.jira.rest.comment"}, Value: []byte(mustJSON(p))}
	require.NoError(t, e.Parse())
	require.Equal(t, canary, string(e.Texts()[0].Value.Bytes()))
}

// A payload in which every row has a value yields every content row once, but
// for second bodies.
func TestEveryContentRowIsRead(t *testing.T) {
	for _, typ := range Forms() {
		f := forms[strings.TrimPrefix(typ, TypePrefix)]
		e := Event{Envelope: Envelope{Type: typ}, Value: []byte(mustJSON(payload(typ)))}
		require.NoError(t, e.Parse(), typ)
		var got, want []string
		for _, x := range e.Texts() {
			got = append(got, x.Role+" "+x.Format.String())
		}
		for _, r := range f.fields {
			beside := r.Path == "comment.body" && f.kind == "issue" // equal to the comment inside of the issue
			if r.Class == Content && r.Format != ADF && !beside {
				want = append(want, r.Role+" "+r.Format.String())
			}
		}
		require.Equal(t, want, got, typ)
	}
}
