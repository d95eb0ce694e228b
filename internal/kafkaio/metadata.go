package kafkaio

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"
	"github.com/segmentio/kafka-go/protocol/metadata"
)

// metadata asks any broker about a topic and remembers who leads its
// partitions. The connection that answers for any broker is always of the same
// one, which may be late to hear of a new topic: what it does not know, another
// is asked.
func (c *Client) metadata(ctx context.Context, topic string) (TopicInfo, error) {
	res, id, err := c.askMetadata(ctx, -1, topic)
	unknown := func() bool {
		return err == nil && len(res.Topics) == 1 && kafka.Error(res.Topics[0].ErrorCode) == kafka.UnknownTopicOrPartition
	}
	if unknown() && len(res.Brokers) > 1 {
		brokers := res.Brokers
		for _, i := range rand.Perm(len(brokers))[:min(3, len(brokers))] {
			if r, other, e := c.askMetadata(ctx, brokers[i].NodeID, topic); e == nil {
				res, id = r, other
			}
			if !unknown() {
				break
			}
		}
	}
	if err != nil {
		return TopicInfo{}, err
	}
	if len(res.Topics) != 1 {
		return TopicInfo{}, errMalformed
	}
	t := res.Topics[0]
	if t.ErrorCode != 0 {
		return TopicInfo{}, kafka.Error(t.ErrorCode)
	}
	info := TopicInfo{Cluster: res.ClusterID, ID: id}
	c.mu.Lock()
	defer c.mu.Unlock()
	if ids := c.topics[topic]; id != "" {
		c.topics[topic] = topicIDs{cmp.Or(ids.first, id), id}
	}
	for _, p := range t.Partitions {
		// A partition may name an error and a leader (a dead replica elsewhere).
		if p.LeaderID < 0 {
			return TopicInfo{}, fmt.Errorf("partition %d: %w", p.PartitionIndex, kafka.LeaderNotAvailable)
		}
		c.leaders[topicPartition{topic, int(p.PartitionIndex)}] = p.LeaderID
		info.Partitions = append(info.Partitions, int(p.PartitionIndex))
	}
	slices.Sort(info.Partitions)
	return info, nil
}

// askMetadata asks a node, or any if it is -1, about a topic. kafka-go stops at
// version 8 of the request; topic ids came with version 10 (KIP-516), which is
// written and read here by hand.
func (c *Client) askMetadata(ctx context.Context, node int32, topic string) (*metadata.Response, string, error) {
	var res metadata.Response
	var id string
	err := c.exchange(ctx, protocol.Metadata, node, c.o.RequestTimeout, func(rw io.ReadWriter, version int16) error {
		m, err := protocol.RoundTrip(rw, 0, 1, c.o.ClientID, &apiversions.Request{})
		if err != nil {
			return err
		}
		for _, k := range m.(*apiversions.Response).ApiKeys {
			if protocol.ApiKey(k.ApiKey) == protocol.Metadata && k.MinVersion <= 10 && k.MaxVersion >= 10 {
				res, id, err = metadataV10(rw, c.o.ClientID, topic)
				return err
			}
		}
		m, err = protocol.RoundTrip(rw, version, 2, c.o.ClientID, &metadata.Request{TopicNames: []string{topic}})
		if err == nil {
			res = *m.(*metadata.Response)
		}
		return err
	})
	if err != nil {
		return nil, "", err // an abandoned call may still be writing to res
	}
	return &res, id, nil
}

// metadataV10 makes a Metadata request of version 10 for one topic and returns
// what version 8 would have told, and the topic's id in hex.
func metadataV10(rw io.ReadWriter, client, topic string) (res metadata.Response, id string, err error) {
	req := make([]byte, 4, 64)
	req = binary.BigEndian.AppendUint16(req, uint16(protocol.Metadata))
	req = binary.BigEndian.AppendUint16(req, 10)
	req = binary.BigEndian.AppendUint32(req, correlation)
	req = binary.BigEndian.AppendUint16(req, uint16(len(client)))
	req = append(req, client...)
	req = append(req, 0)                   // no tagged fields in the header
	req = append(req, 2)                   // topics: one
	req = append(req, make([]byte, 16)...) // named below, not by its id
	req = binary.AppendUvarint(req, uint64(len(topic))+1)
	req = append(req, topic...)
	req = append(req, 0)       // no tagged fields in the topic
	req = append(req, 0, 0, 0) // do not create it; authorised operations: of neither
	req = append(req, 0)       // no tagged fields
	binary.BigEndian.PutUint32(req, uint32(len(req)-4))
	if _, err := rw.Write(req); err != nil {
		return res, "", err
	}
	reply, err := readReply(rw, nil)
	if err != nil {
		return res, "", err
	}
	d := cursor{b: reply}
	d.tags()
	d.i32() // throttle
	for range d.uvarint() - 1 {
		res.Brokers = append(res.Brokers, metadata.ResponseBroker{NodeID: d.i32()})
		d.compact() // host
		d.i32()     // port
		d.compact() // rack
		d.tags()
		if d.bad {
			break
		}
	}
	res.ClusterID = string(d.compact())
	d.i32() // controller
	for range d.uvarint() - 1 {
		t := metadata.ResponseTopic{ErrorCode: d.i16(), Name: string(d.compact())}
		if u := d.take(16); !bytes.Equal(u, make([]byte, 16)) {
			id = hex.EncodeToString(u)
		}
		d.take(1) // internal
		for range d.uvarint() - 1 {
			t.Partitions = append(t.Partitions, metadata.ResponsePartition{ErrorCode: d.i16(), PartitionIndex: d.i32(), LeaderID: d.i32()})
			d.i32() // leader epoch
			for range 3 {
				d.take(4 * (int(d.uvarint()) - 1)) // replicas, in sync, offline
			}
			d.tags()
			if d.bad {
				break
			}
		}
		d.i32()
		d.tags()
		res.Topics = append(res.Topics, t)
		if d.bad {
			break
		}
	}
	if d.bad {
		return res, "", errMalformed
	}
	return res, id, nil
}
