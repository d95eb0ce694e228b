package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"winnow/internal/ingest"
	"winnow/pkg/gate"
)

type webhookCmd struct {
	Listen        string           `default:":8080" help:"Address to listen on. TLS is the reverse proxy's."`
	Endpoints     string           `placeholder:"FILE" type:"existingfile" help:"JSON Lines of {\"path\",\"tenant\",\"secrets\"}: POST /hooks/PATH is that tenant's, signed (X-Hub-Signature) by one of the secrets. For a sender that can't sign, leave the secrets out and make the path 32 characters that nobody can guess."`
	AssumeConsent bool             `help:"For records of your own: adds POST /hooks/local, whose events belong to a built-in tenant that has agreed to everything. Only on a loopback address."`
	EventTime     ingest.EventTime `enum:"record,replay" default:"record" help:"Time of an event of /hooks/local: its own, or that of its receipt, which needs --assume-consent."`
	Memory        int64            `default:"268435456" help:"Bytes of requests that are read at once; what comes beyond is answered 503."`
	Connections   int              `default:"4096" help:"Open connections; more wait."`
	HeaderTimeout time.Duration    `default:"5s" help:"Time for a request's header."`
	BodyTimeout   time.Duration    `default:"30s" help:"Time for a request's body."`
	Drain         time.Duration    `default:"30s" help:"On SIGTERM, time for requests under way."`
	target
}

// Validate refuses what would open the door to everybody.
func (c *webhookCmd) Validate() error {
	switch {
	case c.Endpoints == "" && !c.AssumeConsent:
		return errors.New("without --endpoints nobody has an address to send to; for records of your own give --assume-consent")
	case c.EventTime == ingest.OfReplay && !c.AssumeConsent:
		return errors.New("--event-time replay is for records of your own: it needs --assume-consent")
	case c.AssumeConsent && !loopback(c.Listen):
		return errors.New("--assume-consent takes records from whoever reaches it: --listen must name a loopback address, such as 127.0.0.1:8080")
	case c.Memory < 32<<20:
		return errors.New("--memory must be at least 33554432: one request of unknown length takes half of that")
	}
	return nil
}

func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (c *webhookCmd) endpoints(log *slog.Logger) (*ingest.Endpoints, error) {
	es := &ingest.Endpoints{}
	if c.Endpoints != "" {
		f, err := os.Open(c.Endpoints)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if info, err := f.Stat(); err == nil && info.Mode().Perm()&0o007 != 0 {
			log.Warn("the file of endpoints holds secrets and may be read by everybody", "file", c.Endpoints, "mode", info.Mode().Perm())
		}
		if es, err = ingest.ReadEndpoints(f); err != nil {
			return nil, fmt.Errorf("%s:\n%w", c.Endpoints, err)
		}
	}
	if c.AssumeConsent {
		return es, es.AddLocal()
	}
	return es, nil
}

func (c *webhookCmd) Run(s *session) error {
	log := slog.New(slog.NewTextHandler(s.stderr, nil))
	endpoints, err := c.endpoints(log)
	if err != nil {
		return err
	}
	conn, err := c.open(s, gate.Options{AssumeConsent: c.AssumeConsent})
	if err != nil {
		return err
	}
	defer conn.close()
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return err
	}
	h := &ingest.Webhook{
		Endpoints: endpoints, Policy: conn.table.Policy, Out: conn.Producer(c.Topic), EventTime: c.EventTime, Now: time.Now, Log: log,
		Memory: c.Memory, Connections: c.Connections, HeaderTimeout: c.HeaderTimeout, BodyTimeout: c.BodyTimeout, DrainTimeout: c.Drain,
	}
	log.Info("listening", "address", l.Addr().String(), "endpoints", endpoints.Len(), "topic", c.Topic, "tenants", conn.table.Policy.Len())
	err = errors.Join(h.Serve(conn.ctx, l), h.Out.Close())
	if err == nil && s.ctx.Err() == nil {
		err = context.Cause(conn.ctx)
	}
	h.WriteCounts(s.stdout)
	return err
}
