package schema

import (
	"fmt"
	"strings"
)

// CustomField is what a site's REST resource /field says of one of its custom
// fields: ids, and names, vary from site to site.
type CustomField struct {
	ID     string `json:"id"`             // customfield_ and a number
	Custom string `json:"custom"`         // schema.custom: the key of the field's type
	Name   string `json:"name,omitempty"` // as the site's administrators call it
}

// FieldKind is what a custom field holds.
type FieldKind uint8

// The kinds that anything is made of. The zero value is a field that is dropped.
const (
	FieldUnknown FieldKind = iota
	FieldStoryPoints
	FieldSprint
	FieldSLA
)

// Kind returns what the field holds. A number is story points only where it is
// proven: by the type's key, or as a number field of one of the two names that
// the product itself gives it.
func (f *CustomField) Kind() FieldKind {
	_, key, _ := strings.Cut(f.Custom, ":")
	switch {
	case key == "jsw-story-points", key == "float" && (strings.EqualFold(f.Name, "Story Points") || strings.EqualFold(f.Name, "Story point estimate")):
		return FieldStoryPoints
	case key == "gh-sprint":
		return FieldSprint
	case key == "sd-sla-field":
		return FieldSLA
	}
	return FieldUnknown
}

// Field returns the kind of the site's custom field of an id.
func (t *Tenant) Field(id string) FieldKind {
	for i := range t.Fields {
		if t.Fields[i].ID == id {
			return t.Fields[i].Kind()
		}
	}
	return FieldUnknown
}

func validateFields(fields []CustomField) error {
	seen := map[string]bool{}
	for i, f := range fields {
		number, ok := strings.CutPrefix(f.ID, "customfield_")
		switch {
		case !ok || number == "" || strings.Trim(number, "0123456789") != "":
			return fmt.Errorf("field fields[%d].id must be customfield_ and a number", i)
		case seen[f.ID]:
			return fmt.Errorf("field fields[%d].id is there twice", i)
		case f.Custom == "":
			return fmt.Errorf("field fields[%d].custom is empty", i)
		}
		seen[f.ID] = true
	}
	return nil
}
