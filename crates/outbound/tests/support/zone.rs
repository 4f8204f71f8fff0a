//! A DNS server on loopback that knows a few names. For the tests of this crate and of those that
//! find servers with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{CNAME, SRV},
    },
};
use tokio::{net::UdpSocket, task::JoinSet};

/// What a name stands for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Zone {
    records: BTreeMap<String, Vec<RData>>,
    broken: BTreeSet<String>,
}

/// A zone being served, until it is dropped.
pub(crate) struct Dns {
    pub(crate) address: SocketAddr,
    _task: JoinSet<()>,
}

impl Zone {
    fn with(mut self, name: &str, data: RData) -> Self {
        let of_name = self.records.entry(name.to_owned()).or_default();
        of_name.push(data);
        self
    }

    pub(crate) fn a(self, name: &str, address: Ipv4Addr) -> Self {
        self.with(name, RData::from(address))
    }

    pub(crate) fn cname(self, name: &str, other: &str) -> Self {
        self.with(name, RData::CNAME(CNAME(absolute(other))))
    }

    /// Priority, weight, port; target.
    pub(crate) fn srv(self, name: &str, record: (u16, u16, u16), target: &str) -> Self {
        let (priority, weight, port) = record;
        let record = SRV::new(priority, weight, port, absolute(target));
        self.with(name, RData::SRV(record))
    }

    /// Questions for this name fail.
    pub(crate) fn broken(mut self, name: &str) -> Self {
        self.broken.insert(name.to_owned());
        self
    }

    pub(crate) async fn serve(self) -> Dns {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut buffer = [0; 1_500];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let query = Message::from_vec(&buffer[..length]).unwrap();
                let answer = self.answer(&query).to_vec().unwrap();
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        Dns {
            address,
            _task: task,
        }
    }

    fn answer(&self, query: &Message) -> Message {
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.metadata.recursion_desired = true;
        answer.metadata.recursion_available = true;
        let question = query.queries[0].clone();
        let mut name = question.name.clone();
        answer.add_query(question.clone());
        loop {
            let plain = name.to_lowercase().to_ascii();
            let plain = plain.trim_end_matches('.');
            if self.broken.contains(plain) {
                answer.metadata.response_code = ResponseCode::ServFail;
                return answer;
            }
            let Some(records) = self.records.get(plain) else {
                if answer.answers.is_empty() {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                }
                return answer;
            };
            let mut alias = None;
            for data in records {
                if let RData::CNAME(CNAME(other)) = data {
                    alias = Some(other.clone());
                } else if data.record_type() != question.query_type {
                    continue;
                }
                answer.add_answer(Record::from_rdata(name.clone(), 0, data.clone()));
            }
            match alias {
                Some(other) if question.query_type != RecordType::CNAME => name = other,
                _ => return answer,
            }
        }
    }
}

fn absolute(name: &str) -> Name {
    Name::from_ascii(format!("{}.", name.trim_end_matches('.'))).unwrap()
}
