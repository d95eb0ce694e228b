package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"winnow/pkg/gate"
	"winnow/pkg/schema"
)

func TestGateCommand(t *testing.T) {
	const tenants, at = "../../fixtures/tenants.jsonl", "2026-11-25T12:00:00Z"
	for name, c := range map[string]struct {
		args string
		code int
		want string
	}{
		"opted out when it happened": {"t-row21-reoptin --product jira --event-time 2026-09-15T00:00:00Z", 3, `jira: row 21, opted out, later opts in again
  organisation org-violetdene, region eu
  metadata  dropped, opted_out, by what held on 2026-09-15T00:00:00Z:
      t-row21-reoptin: history[1].set.opted_out = true, since 2026-09-01T08:00:00Z
  in-app    dropped, opted_out, by what held on 2026-09-15T00:00:00Z:
      t-row21-reoptin: history[1].set.opted_out = true, since 2026-09-01T08:00:00Z
`},
		"opted in again":       {"t-row21-reoptin --product jira", 0, "metadata  collected"},
		"exempt":               {"t-row02-cmek --product jira", 3, `history[1].set.cmek = true, since`},
		"nobody":               {"nobody --product confluence", 3, "confluence: row 1, tenant unknown"},
		"a scope":              {"t-row20-project --product jira --project sed2", 0, `in-app    dropped, scope_excluded`},
		"the other org's host": {"t-row20-project --product jira --host other.example", 3, "dropped, tenant_mismatch"},
		"warned":               {"t-row19-standard --product jira", 0, "warning: a metadata opt-out is recorded on a plan that offers none (row 19)"},
		"all products":         {"t-row20-app", 0, "jira_service_management: row 11"},
		"nobody decided":       {"t-row12-free-unset --product jira", 0, "in_app = nobody has said"},
		"the vendor's":         {"t-row12-free-unset --product jira --unset-settings vendor", 0, "in-app    collected"},
		"before T0":            {"t-row11-free-on --product jira --event-time 2026-08-01T00:00:00Z", 3, "dropped, before_effective_date"},
		"trello":               {"t-row11-free-on --product trello", 3, "the event's product = trello"},
	} {
		t.Run(name, func(t *testing.T) {
			r := deidentify(t, "", append([]string{"gate", "--tenants", tenants, "--at", at, "--tenant"}, strings.Fields(c.args)...)...)
			require.Equal(t, c.code, r.code, r.stderr)
			require.Contains(t, r.stdout, c.want)
		})
	}
	r := deidentify(t, "", "gate", "--tenants", tenants, "--at", at, "--tenant", "t-row11-free-on", "--json")
	require.Zero(t, r.code)
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	require.Len(t, lines, 3)
	var x explained
	require.NoError(t, json.Unmarshal([]byte(lines[0]), &x))
	require.Equal(t, explained{schema.Jira, x.Explanation}, x)
	require.Equal(t, gate.Sentences[11], x.Sentence)
	require.True(t, x.InApp && x.Metadata)

	r = deidentify(t, "", "gate", "--tenant", "x")
	require.Equal(t, 2, r.code)
	r = deidentify(t, "", "gate", "--tenant", "x", "--tenants", "../../fixtures/bad/wrong-types.jsonl")
	require.Equal(t, 1, r.code)
	require.Contains(t, r.stderr, "line 1: tenant record:")
}
