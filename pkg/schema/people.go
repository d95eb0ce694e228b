package schema

import (
	"bytes"
	"unicode"
	"unicode/utf8"
)

// People appends one entry for each person that the record declares anywhere:
// in user objects, account id fields, changelog items of user fields, ADF
// mentions, and "login(login)" strings. An entry holds the person's identities
// separated by NUL: display names, e-mail addresses and account ids as they
// stand, and logins after a '~', as Jira's mentions write them.
func (e *Event) People(dst [][]byte) [][]byte {
	p := people{out: dst, byID: map[string]int{}, byName: map[string]int{}, held: map[entry]bool{}}
	e.doc.Root().all(p.visit)
	for _, t := range e.texts {
		// An ADF document may stand in a string; its mentions declare people too.
		if t.Format == ADF && t.Value.Kind() == String {
			var d Doc
			if d.Parse(t.Value.Bytes()) == nil {
				d.Root().all(p.visit)
			}
		}
	}
	return p.out
}

// identity is one thing that a person is called by.
type identity struct {
	sort identitySort
	s    []byte
}

type identitySort uint8

const (
	displayName identitySort = iota
	login                    // one word, chosen by or for one person: name, key, username
	address                  // an e-mail address or account id
)

type people struct {
	out    [][]byte
	byID   map[string]int // login or address -> index into out
	byName map[string]int // display name -> index of the first person of that name
	held   map[entry]bool // what the entries of out hold
	ids    []identity
}

// entry is one identity in out[person].
type entry struct {
	person int
	id     string
}

// IsUser reports whether the object describes a person: POLICY removes any
// object with one of these keys, wherever it stands.
func IsUser(v Value) bool {
	if v.Kind() != Object {
		return false
	}
	for c, ok := v.First(); ok; c, ok = c.Next(v) {
		switch string(c.Key()) {
		case "accountId", "displayName", "emailAddress", "userKey", "publicName":
			if k := c.Kind(); k == String || k == Null {
				return true
			}
		}
	}
	return false
}

// accountFields are keys whose string is an account id, user key or login
// outside of any user object.
var accountFields = map[string]bool{
	"userAccountId": true, "creatorAccountId": true, "lastModifierAccountId": true, "authorAccountId": true,
	"ownerAccountId": true, "leadAccountId": true, "authorId": true, "ownerId": true, "lastOwnerId": true,
	"userKey": true, "creatorKey": true, "lastModifierKey": true,
	"creatorName": true, "lastModifierName": true, "userName": true,
}

// userItems are the changelog fields whose values are people.
var userItems = map[string]bool{"assignee": true, "reporter": true, "creator": true, "Assignee": true, "Reporter": true, "Creator": true}

func (p *people) visit(v Value) {
	switch v.Kind() {
	case Object:
		switch {
		case IsUser(v):
			p.user(v)
		case v.Get("type").equal("mention"):
			a := v.Get("attrs")
			p.add(identity{displayName, bytes.TrimPrefix(a.Get("text").Bytes(), []byte("@"))}, identity{address, a.Get("id").Bytes()})
		case v.Has("fromString") || v.Has("toString") || v.Has("tmpFromAccountId"):
			if v.Has("tmpFromAccountId") || v.Has("tmpToAccountId") || userItems[string(v.Get("field").Bytes())] {
				p.add(identity{displayName, v.Get("fromString").Bytes()}, identity{login, v.Get("from").Bytes()}, identity{address, v.Get("tmpFromAccountId").Bytes()})
				p.add(identity{displayName, v.Get("toString").Bytes()}, identity{login, v.Get("to").Bytes()}, identity{address, v.Get("tmpToAccountId").Bytes()})
			}
		}
		for c, ok := v.First(); ok; c, ok = c.Next(v) {
			if c.Kind() == String && accountFields[string(c.Key())] {
				p.add(identity{login, c.Bytes()})
			}
		}
	case String:
		// "login(login)", as Java's toString leaves people in custom fields.
		b := v.Bytes()
		if n := len(b); n >= 6 && n <= 256 && n%2 == 0 && b[n-1] == ')' {
			h := n/2 - 1
			if b[h] == '(' && bytes.Equal(b[:h], b[h+1:n-1]) && !bytes.ContainsAny(b[:h], " ()") {
				p.add(identity{login, b[:h]})
			}
		}
	}
}

func (p *people) user(v Value) {
	p.ids = p.ids[:0]
	for c, ok := v.First(); ok; c, ok = c.Next(v) {
		switch string(c.Key()) {
		case "displayName", "publicName":
			p.ids = append(p.ids, identity{displayName, c.Bytes()})
			// "Jane Roe (Unlicensed)", "Jane Roe [Acme]": texts leave the suffix out.
			if i := bytes.IndexAny(c.Bytes(), "(["); i > 0 {
				p.ids = append(p.ids, identity{displayName, c.Bytes()[:i]})
			}
		case "accountId", "emailAddress", "email":
			p.ids = append(p.ids, identity{address, c.Bytes()})
		case "name", "key", "userKey", "username":
			p.ids = append(p.ids, identity{login, c.Bytes()})
		}
	}
	p.add(p.ids...)
}

// maxIdentity bounds an identity, in bytes; what is longer is not a name.
const maxIdentity = 256

// add enters one person, or adds to one who is known by a login or address
// that the new entry shares. A display name joins two entries only where one
// of them has nothing else, for two people may share a name.
func (p *people) add(ids ...identity) {
	n, at, own := 0, -1, false
	for _, id := range ids {
		if bytes.IndexByte(id.s, 0) >= 0 {
			id.s = bytes.ReplaceAll(id.s, []byte{0}, []byte{' '}) // NUL separates identities
		}
		id.s = bytes.TrimSpace(id.s)
		if !hasWordRune(id.s) || len(id.s) > maxIdentity {
			continue
		}
		switch {
		case id.sort != address && isAddress(id.s):
			id.sort = address
		case id.sort == login && bytes.ContainsAny(id.s, " \u00a0"):
			id.sort = displayName // a login is one word
		}
		if id.sort != displayName {
			own = true
			if i, ok := p.byID[fold(id.s)]; ok {
				at = i
			}
		}
		ids[n] = id
		n++
	}
	ids = ids[:n]
	for _, id := range ids {
		if at >= 0 || id.sort != displayName {
			continue
		}
		if i, ok := p.byName[fold(id.s)]; ok && (!own || bytes.IndexByte(p.out[i], 0) < 0 && p.out[i][0] != '~') {
			at = i
		}
	}
	if n == 0 {
		return
	}
	if at < 0 {
		at = len(p.out)
		p.out = append(p.out, nil)
	}
	for _, id := range ids {
		m, s := p.byID, id.s
		switch id.sort {
		case displayName:
			m = p.byName
		case login:
			s = append([]byte{'~'}, s...)
		}
		k := fold(id.s)
		if _, ok := m[k]; !ok {
			m[k] = at
		}
		if e := (entry{at, string(s)}); !p.held[e] {
			p.held[e] = true
			if len(p.out[at]) > 0 {
				p.out[at] = append(p.out[at], 0)
			}
			p.out[at] = append(p.out[at], s...)
		}
	}
}

// isAddress reports whether s has the form of an e-mail address or of an
// account id with its colon.
func isAddress(s []byte) bool { return bytes.IndexByte(s, '@') > 0 || bytes.IndexByte(s, ':') > 0 }

func fold(b []byte) string { return string(bytes.ToLower(b)) }

func hasWordRune(b []byte) bool {
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			return true
		}
		b = b[n:]
	}
	return false
}
