package schema

import "strings"

// Class is what the policy makes of a path. The zero value is Drop: a path
// that no row of the catalog names never leaves.
type Class uint8

// The classes of the field catalog (POLICY "What is what").
const (
	Drop       Class = iota
	Identifier       // removed, and where it names a person, scrubbed from the texts as well
	Measure          // metadata: a number, date or enum that may leave aggregated
	Vocabulary       // an in-app name that identifies an organisation when rare: it leaves only as a counted word of many
	Content          // in-app free text, scrubbed
)

func (c Class) String() string {
	return [...]string{"drop", "identifier", "metadata", "vocabulary", "in-app"}[c]
}

// Format is the markup of a text.
type Format uint8

// The formats that texts arrive in. Wiki is Jira's wiki markup, ADF the
// Atlassian Document Format (JSON), Storage Confluence's XHTML.
const (
	Plain Format = iota
	Wiki
	ADF
	Storage
)

// FormatNames are the words for formats in files and flags.
var FormatNames = [...]string{"plain", "wiki", "adf", "storage"}

func (f Format) String() string { return FormatNames[f] }

// Field is one row of the catalog. A path names object members joined by '.';
// "[]" after a member stands for each element of an array. A row covers the
// path and everything below it unless a longer row says otherwise.
type Field struct {
	Path   string
	Class  Class
	Role   string // of Content: the part of the document it is
	Format Format // of Content that is a string; an object there must be ADF
}

// form is one form that a record arrives in, with its catalog.
type form struct {
	kind    string   // what the document is
	entity  []string // paths of the id by which events are kept in order; the first that is there counts
	comment string   // path of the comment that a webhook tells of
	hosts   []string
	project string
	issue   string // path of an issue key, which begins with the project's
	space   string
	fields  []Field
	content []contentPath

	vocabulary bool // the record is a custom name, and nothing else of it counts
}

type contentPath struct {
	Field
	steps []string
}

// at puts a prefix before the path of every row.
func at(prefix string, rows ...[]Field) []Field {
	var out []Field
	for _, rs := range rows {
		for _, f := range rs {
			f.Path = prefix + f.Path
			out = append(out, f)
		}
	}
	return out
}

// Rows of people name the places that are known; the type rule (IsUser) finds
// them wherever they stand.
var issueFields = []Field{
	{Path: "id", Class: Identifier},
	{Path: "key", Class: Identifier},
	{Path: "self", Class: Identifier},
	{Path: "fields.summary", Class: Content, Role: "summary", Format: Plain},
	{Path: "fields.description", Class: Content, Role: "description", Format: Wiki},
	{Path: "fields.environment", Class: Content, Role: "environment", Format: Wiki},
	{Path: "fields.comment.comments[].body", Class: Content, Role: "comment", Format: Wiki},
	{Path: "fields.comment.comments[].author", Class: Identifier},
	{Path: "fields.comment.comments[].updateAuthor", Class: Identifier},
	{Path: "fields.comment.comments[].visibility", Class: Identifier},
	{Path: "fields.worklog.worklogs[].comment", Class: Content, Role: "worklog", Format: Wiki},
	{Path: "fields.worklog.worklogs[].author", Class: Identifier},
	{Path: "fields.worklog.worklogs[].updateAuthor", Class: Identifier},
	{Path: "fields.issuetype.name", Class: Measure},
	{Path: "fields.issuetype.subtask", Class: Measure},
	{Path: "fields.issuetype.hierarchyLevel", Class: Measure},
	{Path: "fields.priority.name", Class: Measure},
	{Path: "fields.status.statusCategory.key", Class: Measure},
	{Path: "fields.sprint.endDate", Class: Measure},
	{Path: "fields.sprint.completeDate", Class: Measure},
	{Path: "fields.closedSprints[].endDate", Class: Measure},
	{Path: "fields.closedSprints[].completeDate", Class: Measure},
	{Path: "fields.creator", Class: Identifier},
	{Path: "fields.reporter", Class: Identifier},
	{Path: "fields.assignee", Class: Identifier},
	{Path: "fields.project", Class: Identifier},
	{Path: "fields.labels", Class: Identifier},
	{Path: "fields.components", Class: Identifier},
	{Path: "fields.versions", Class: Identifier},
	{Path: "fields.fixVersions", Class: Identifier},
	{Path: "fields.attachment", Class: Identifier},
	{Path: "fields.issuelinks", Class: Identifier},
	{Path: "fields.parent", Class: Identifier},
	{Path: "fields.subtasks", Class: Identifier},
	{Path: "fields.votes", Class: Identifier},
	{Path: "fields.watches", Class: Identifier},
}

var changeFields = []Field{
	{Path: "user", Class: Identifier},
	{Path: "changelog", Class: Identifier},
}

var commentFields = []Field{
	{Path: "id", Class: Identifier},
	{Path: "self", Class: Identifier},
	{Path: "author", Class: Identifier},
	{Path: "updateAuthor", Class: Identifier},
	{Path: "visibility", Class: Identifier},
	{Path: "body", Class: Content, Role: "comment", Format: Wiki},
}

var worklogFields = []Field{
	{Path: "id", Class: Identifier},
	{Path: "issueId", Class: Identifier},
	{Path: "self", Class: Identifier},
	{Path: "author", Class: Identifier},
	{Path: "updateAuthor", Class: Identifier},
	{Path: "visibility", Class: Identifier},
	{Path: "comment", Class: Content, Role: "worklog", Format: Wiki},
}

var sprintFields = []Field{
	{Path: "id", Class: Identifier},
	{Path: "self", Class: Identifier},
	{Path: "endDate", Class: Measure},
	{Path: "completeDate", Class: Measure},
}

var pageFields = []Field{
	{Path: "id", Class: Identifier},
	{Path: "title", Class: Content, Role: "title", Format: Plain},
	{Path: "space", Class: Identifier},
	{Path: "history", Class: Identifier},
	{Path: "version", Class: Identifier},
	{Path: "restrictions", Class: Identifier},
	{Path: "_links", Class: Identifier},
	// One body is kept: atlas_doc_format is read when there is no storage
	// body (see Event.Parse); view, export_view and the others are rendered
	// copies and are dropped.
	{Path: "body.storage.value", Class: Content, Role: "body", Format: Storage},
	{Path: "body.atlas_doc_format.value", Class: Content, Role: "body", Format: ADF},
}

// A Confluence comment's title repeats its page's, so it is not content.
var pageCommentFields = []Field{
	{Path: "id", Class: Identifier},
	{Path: "title", Class: Drop},
	{Path: "author", Class: Identifier},
	{Path: "container", Class: Identifier},
	{Path: "history", Class: Identifier},
	{Path: "version", Class: Identifier},
	{Path: "_links", Class: Identifier},
	{Path: "body.storage.value", Class: Content, Role: "comment", Format: Storage},
	{Path: "body.atlas_doc_format.value", Class: Content, Role: "comment", Format: ADF},
}

var requestFields = []Field{
	{Path: "issueId", Class: Identifier},
	{Path: "issueKey", Class: Identifier},
	{Path: "reporter", Class: Identifier},
	{Path: "participants", Class: Identifier},
	{Path: "requestFieldValues", Class: Identifier},
	{Path: "_links", Class: Identifier},
	{Path: "sla.values[].completedCycles", Class: Measure},
	{Path: "sla.values[].ongoingCycle", Class: Measure},
}

var confluenceHosts = []string{"_links.base", "_links.self", "self"}

// forms maps the part of an event type after "winnow." to its form.
var forms = func() map[string]*form {
	m := map[string]*form{}
	add := func(f form, names ...string) {
		for _, fl := range f.fields {
			f.vocabulary = f.vocabulary || fl.Class == Vocabulary
			if fl.Class == Content {
				f.content = append(f.content, contentPath{fl, strings.Split(fl.Path, ".")})
			}
		}
		for _, n := range names {
			m[n] = &f
		}
	}
	const project = "fields.project.key"
	add(form{kind: "issue", entity: []string{"id"}, hosts: []string{"self"}, project: project, issue: "key", fields: issueFields},
		"jira.rest.issue")
	add(form{kind: "comment", entity: []string{"id"}, hosts: []string{"self", "_links.self"}, fields: commentFields},
		"jira.rest.comment", "jira.rest.request_comment")
	add(form{kind: "worklog", entity: []string{"id"}, hosts: []string{"self"}, fields: worklogFields},
		"jira.rest.worklog")
	add(form{kind: "sprint", entity: []string{"id"}, hosts: []string{"self"}, fields: sprintFields},
		"jira.rest.sprint")
	add(form{kind: "request", entity: []string{"issueId"}, issue: "issueKey", hosts: []string{"_links.self", "_links.jiraRest", "_links.web"}, fields: requestFields},
		"jira.rest.request")
	// Older servers put a comment beside the issue in issue_updated.
	add(form{kind: "issue", entity: []string{"issue.id"}, comment: "comment", hosts: []string{"issue.self", "comment.self", "user.self"}, project: "issue." + project, issue: "issue.key",
		fields: at("", at("issue.", issueFields), at("comment.", commentFields), changeFields)},
		"jira.webhook.issue_created", "jira.webhook.issue_updated", "jira.webhook.issue_deleted")
	// By the issue, so that a comment and the issue_updated that repeats it meet
	// on one partition.
	add(form{kind: "comment", entity: []string{"issue.id", "comment.id"}, comment: "comment", hosts: []string{"comment.self", "issue.self", "user.self"}, project: "issue." + project, issue: "issue.key",
		fields: at("", at("comment.", commentFields), []Field{{Path: "issue", Class: Identifier}}, changeFields)},
		"jira.webhook.comment_created", "jira.webhook.comment_updated", "jira.webhook.comment_deleted")
	add(form{kind: "worklog", entity: []string{"worklog.id"}, hosts: []string{"worklog.self", "issue.self", "user.self"}, project: "issue." + project, issue: "issue.key",
		fields: at("", at("worklog.", worklogFields), []Field{{Path: "issue", Class: Identifier}}, changeFields)},
		"jira.webhook.worklog_created", "jira.webhook.worklog_updated", "jira.webhook.worklog_deleted")
	add(form{kind: "sprint", entity: []string{"sprint.id"}, hosts: []string{"sprint.self"},
		fields: at("", at("sprint.", sprintFields), at("oldValue.", sprintFields))},
		"jira.webhook.sprint_created", "jira.webhook.sprint_updated", "jira.webhook.sprint_started", "jira.webhook.sprint_closed", "jira.webhook.sprint_deleted")

	named := func(path string, rows ...Field) []Field {
		return append(rows, Field{Path: path, Class: Vocabulary}, Field{Path: "id", Class: Identifier}, Field{Path: "self", Class: Identifier})
	}
	add(form{kind: "status", entity: []string{"id"}, hosts: []string{"self"}, fields: named("name")}, "jira.rest.status")
	add(form{kind: "workflow", entity: []string{"id.entityId", "id"}, hosts: []string{"self"}, fields: named("name", Field{Path: "id.name", Class: Vocabulary})}, "jira.rest.workflow")
	add(form{kind: "emoji", entity: []string{"id"}, hosts: []string{"self"}, fields: named("shortName", Field{Path: "creatorUserId", Class: Identifier})}, "confluence.rest.emoji")

	for _, k := range []string{"page", "blogpost"} {
		add(form{kind: k, entity: []string{"id"}, hosts: confluenceHosts, space: "space.key", fields: pageFields}, "confluence.rest."+k)
	}
	add(form{kind: "comment", entity: []string{"id"}, hosts: confluenceHosts, fields: pageCommentFields}, "confluence.rest.comment")
	for _, k := range []string{"page", "blog", "blogpost"} {
		kind := "page"
		if k != "page" {
			kind = "blogpost"
		}
		add(form{kind: kind, entity: []string{k + ".id"}, hosts: []string{k + ".self"}, space: k + ".spaceKey",
			fields: at("", at(k+".", []Field{{Path: "title", Class: Content, Role: "title", Format: Plain}, {Path: "self", Class: Identifier}, {Path: "spaceKey", Class: Identifier}}))},
			"confluence.webhook."+k)
	}
	// The body of a comment is not in its webhook.
	add(form{kind: "comment", entity: []string{"comment.id"}, hosts: []string{"comment.self", "comment.parent.self"}, space: "comment.spaceKey",
		fields: []Field{{Path: "comment", Class: Identifier}}},
		"confluence.webhook.comment")
	return m
}()

// TypePrefix begins every event type; "<family>.<webhook|rest>.<name>" follows.
const TypePrefix = "winnow."

// Forms returns the event types that the readers know.
func Forms() []string {
	var out []string
	for n := range forms {
		out = append(out, TypePrefix+n)
	}
	return out
}

// Classify returns what the catalog makes of a path in an event type: the
// class of the longest row that covers it, Drop when none does.
func Classify(eventType, path string) Class {
	f := forms[strings.TrimPrefix(eventType, TypePrefix)]
	if f == nil {
		return Drop
	}
	class, best := Drop, -1
	for _, r := range f.fields {
		if len(r.Path) > best && (path == r.Path || strings.HasPrefix(path, r.Path) && (path[len(r.Path)] == '.' || path[len(r.Path)] == '[')) {
			class, best = r.Class, len(r.Path)
		}
	}
	return class
}
